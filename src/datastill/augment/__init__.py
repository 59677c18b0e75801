"""Augmentation as explicit records: draw once, store, replay, share between real and synthetic images."""

from datastill.augment.dsa import Dsa, DsaRecord, without_flip

__all__ = ["Dsa", "DsaRecord", "without_flip"]
