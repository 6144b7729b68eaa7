"""The amount of text that a budget reads, on this machine or on a card which is not here."""

from __future__ import annotations

from cramjax import start
from cramjax.config.views import Config
from cramjax.console import Announce
from cramjax.errors import UserError
from cramjax.planning import cards
from cramjax.training import text_amount


def settled(config: Config, device: str, n_devices: int | None, announce: Announce) -> Config:
    """Returns `config` with the data.max_mb='budget' that a run on the card will ask for.

    Args:
        config: the configuration of the run.
        device: the card's name, such as "h100", or that of a TPU slice.
        n_devices: cards of the run; None for one, or for all devices of a slice.
        announce: is told the number, and what it follows from.

    Raises:
        UserError: for an unknown name.
    """
    card = cards.find(device)
    if card.n_devices > 1 and n_devices is not None:
        raise UserError(
            f"--n_devices {n_devices}: the slice {card.name} has its own {card.n_devices} devices; "
            "leave the flag out"
        )
    return text_amount.settled_for(config, card.device_kind, n_devices or card.n_devices, announce)


def settled_here(config: Config, announce: Announce) -> Config:
    """Returns the same for the devices of this machine."""
    start.start()
    return text_amount.settled(config, None, announce)
