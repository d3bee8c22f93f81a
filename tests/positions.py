"""Reading positions: which epoch and which offset they stand for."""


def epoch_and_offset(position: int) -> tuple[int, int]:
    """The inverse of `processors.domain.ledger.position_of`, written from its documentation: epoch * 2**48 + offset."""
    return divmod(position, 2**48)
