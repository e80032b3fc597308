"""An accident in this process: what a kill would end here and now."""


class Accident(BaseException):
    """The process would be dead now; nothing catches this on the way."""
