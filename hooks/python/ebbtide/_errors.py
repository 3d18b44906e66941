"""What a store raises. In C++ the same names are classes of `ebbtide::Error`."""


class Error(RuntimeError):
    """Any error of ebbtide's own."""


class ConfigError(Error, ValueError):
    """A wrong option: the message names the option, the value and what is accepted."""


class OutOfBudget(Error, MemoryError):
    """No tier has room: the message names the budget to raise and by how much."""


class SpillError(Error, OSError):
    """The disk failed and no copy is left: the message names file, offset and errno."""


class DeviceError(Error):
    """A device failed, and a saved tensor cannot come back to it: the message names the device and what failed."""


class CorruptTensor(Error):
    """Bytes came back that are not the bytes that left; no gradient was made of them."""


class CheckpointError(Error):
    """A region that is computed again saves other tensors than it did the first time."""


class RecomputeStopped(Error):
    """Ends the second run of a region where nothing more is needed of it. Let it pass: code that catches it does no harm, but computes in vain."""


class ClosedError(Error):
    """A scope was entered on a store that is closed."""
