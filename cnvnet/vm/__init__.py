"""The VM of a request: who it is, which interface of the pod it is bound to, what its links are called."""
