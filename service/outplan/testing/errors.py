"""The errors of the servers and workers that tests start."""


class ServersUnavailable(Exception):
    """Raised when RabbitMQ or MongoDB can be neither found nor started.

    The text says what to install or set.
    """


class NotControllable(ServersUnavailable):
    """Raised when a test tries to control a server that is not its own."""


class ServerFailed(ServersUnavailable):
    """Raised when a server does not start, stop or obey. The text ends with its log."""


class WorkerFailed(Exception):
    """Raised when a worker exits, does not become ready or does not stop.

    The text ends with its log.
    """
