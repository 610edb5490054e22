"""The stock clients by name."""

from compressor.errors import PackError
from export.clients.client import Client
from export.clients.onnxruntime_genai import OnnxRuntimeGenai
from export.clients.openvino_genai import OpenVinoGenai
from export.clients.transformers_js.client import TransformersJs
from export.clients.web.client import WebPage

CLIENTS: dict[str, Client] = {}
"""Every client by its name."""


def register(client: Client) -> None:
    """Add a client; the command line and errors know it from then on.

    Raises:
        PackError: there is one of this name.
    """
    if client.name in CLIENTS:
        raise PackError([f"{client.name}: there is a client of this name already"])
    CLIENTS[client.name] = client


for _client in (TransformersJs(), OpenVinoGenai(), OnnxRuntimeGenai(), WebPage()):
    register(_client)


def find_client(name: str) -> Client:
    """Return a client by its name.

    Raises:
        PackError: there is none of this name.
    """
    if name not in CLIENTS:
        raise PackError([f"{name}: no such client; there are {', '.join(CLIENTS)}"])
    return CLIENTS[name]
