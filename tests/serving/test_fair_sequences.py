"""Sequences of several clients of one server: none may keep the others from beginning any."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from tests.support import recurrent
from tests.support.servers import ServerThread, bundle_of, place_of
from tritonclient.utils import InferenceServerException

from hasten.core.sequences import Sequences
from hasten.serving.models.sequences import KeptSequences
from hasten.serving.state import Limits

MOST = 8
TOKENS = {name: f"the-token-of-the-{name}" for name in ("greedy", "other", "third")}
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fair-sequences")
    return bundle_of(folder, recurrent.gru(folder), sequences=Sequences((("h", "h_out"),)))


@pytest.fixture(params=[True, False], ids=["fair", "unfair"])
def fair(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def server(bundle: Path, tmp_path: Path, fair: bool) -> Iterator[ServerThread]:
    file = tmp_path / "tokens"
    tables = [f'[{n}]\nscopes = ["infer"]\ntoken = "{token}"\n' for n, token in TOKENS.items()]
    file.write_text("".join(tables))
    file.chmod(0o600)
    place = place_of(bundle, most_sequences=MOST)
    with ServerThread(place, grpc=True, tokens=file, limits=Limits(fair=fair)) as running:
        yield running


@pytest.fixture(params=[triton, triton_grpc], ids=["http", "grpc"])
def ask(request: pytest.FixtureRequest, server: ServerThread) -> Iterator[Ask]:
    module = request.param
    url = server.host if module is triton else server.grpc_url
    with module.InferenceServerClient(url) as client:
        key = "Authorization" if module is triton else "authorization"
        tensor = module.InferInput("x", [1, recurrent.WIDE], "FP32")
        tensor.set_data_from_numpy(np.ones((1, recurrent.WIDE), np.float32))

        def asked(name: str, id_: int, **place: Any) -> str:
            """Send a step; return why it was refused, "" if it wasn't."""
            headers = {key: f"Bearer {TOKENS[name]}"}
            try:
                client.infer("gru", [tensor], sequence_id=id_, headers=headers, **place)
            except InferenceServerException as error:
                return str(error.message())
            return ""

        yield asked


def kept(server: ServerThread) -> KeptSequences:
    model = server.server.state.repository.find("gru")
    assert model.sequences is not None
    return model.sequences


def test_a_client_that_took_all_sequences_makes_room_for_others(
    server: ServerThread, ask: Ask, fair: bool
) -> None:
    begun = [ask("greedy", number, sequence_start=True) for number in range(1, MOST + 1)]
    assert begun == [""] * MOST  # alone it may
    ask("greedy", 1)  # the second is now the one that was used longest ago
    refused = ask("other", 1, sequence_start=True)
    if not fair:
        assert (
            refused
            == "8 sequences are open, which is the limit: end some with sequence_end, or retry later"
        )
        return
    assert refused == ""
    assert ask("greedy", 2) == (
        "there is no sequence 2: it was ended because another client needed its place; start it with a request "
        "that sets sequence_start"
    )
    assert ask("greedy", 1) == ask("greedy", 3) == ask("other", 1) == ""
    assert ask("greedy", 2, sequence_start=True) == (
        "this client has 7 of the 8 sequences that may be open, and other clients have some too: end some "
        "with sequence_end, or retry later"
    )
    # Others take until nobody has more than one beyond another's; then nobody loses any.
    told = [ask("other", number, sequence_start=True) for number in range(2, MOST)]
    assert (told.count(""), server.call(lambda: len(kept(server)))) == (3, MOST)
    assert [ask("greedy", number) for number in range(1, MOST + 1)].count("") == 4
    assert [ask("other", number, sequence_end=True) for number in range(1, 5)] == [""] * 4
    assert ask("third", 1, sequence_start=True) == ""


def test_what_clients_have_is_given_back(server: ServerThread, ask: Ask) -> None:
    for name in TOKENS:
        ask(name, 1, sequence_start=True)
        ask(name, 1, sequence_start=True)  # anew
    ask("greedy", 1, sequence_end=True)
    ask("other", 2, sequence_start=True, sequence_end=True)
    shares = kept(server)._shares
    assert server.call(lambda: shares.taken) == server.call(lambda: len(kept(server))) == 2
    for name in ("other", "third"):
        ask(name, 1, sequence_end=True)
    assert server.call(lambda: shares.taken) == 0
