"""What must have happened in a process before two runs on its CPU can be compared bit by bit."""

FUNCTIONS = "acos asin atan cos erf erfc erfinv exp log log2 log10 sin sqrt tan tanh trunc".split()


def settle() -> None:
    """Calls each function for which torch's CPU kernels go to oneMKL's vector library, on one element and so on one thread.

    That library looks for a function's kernel when it is first called; threads that call first together may run a less precise one, once
    (pytorch issue 188792, seen with the oneMKL of torch 2.10 and 2.11): plain training is not like itself.
    """
    import torch

    for dtype in (torch.float32, torch.float64):
        one = torch.full((1,), 0.5, dtype=dtype)
        for name in FUNCTIONS:
            getattr(torch, name)(one)
