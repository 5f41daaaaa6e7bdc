"""Publishing: the model card is a function of the ledger, and an upload is read back and compared."""

from mcompose.publish.card import model_card, write_card
from mcompose.publish.push import PushedFile, PushOptions, PushReport, push

__all__ = ["PushOptions", "PushReport", "PushedFile", "model_card", "push", "write_card"]
