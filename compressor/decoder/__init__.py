"""The compressed decoder: one Llama-like decoder that carries visual and text rows as two tensors."""

from compressor.decoder.model import Decoder, KeyValue, Stage
from compressor.decoder.weights import decoder_from

__all__ = ["Decoder", "KeyValue", "Stage", "decoder_from"]
