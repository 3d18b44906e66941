"""Running a model's forwards inside a store."""

import weakref


class _Hook:
    """A module hook that is nobody's once it is copied or pickled: the copy of an attached model is not attached."""

    def __init__(self, call=None, model=None):
        self._call = call
        self._model = weakref.ref(model) if model is not None else lambda: None

    def __call__(self, module, *rest):
        if self._call is not None and module is self._model():
            self._call()

    def __deepcopy__(self, memo):
        return _Hook()

    def __copy__(self):
        return _Hook()

    def __reduce__(self):
        return (_Hook, ())


class Attachment:
    """A model whose forwards run inside a store. `remove()` it, or use it as a context manager; dropping it changes nothing."""

    def __init__(self, store, model):
        for tensor in (*model.parameters(), *model.buffers()):
            store._store.attach_tensor(tensor)
        self._handles = (
            model.register_forward_pre_hook(_Hook(store.__enter__, model), prepend=True),
            model.register_forward_hook(_Hook(lambda: store.__exit__(None, None, None), model), always_call=True),
        )

    def remove(self):
        """Ends it. Idempotent; what was saved is not touched."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.remove()
