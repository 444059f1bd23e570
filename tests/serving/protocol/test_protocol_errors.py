"""What a refused request is told is one line, whatever names the request has."""

from hasten.serving.protocol.errors import Kind, ProtocolError


def test_line_breaks_and_control_characters_of_a_client_are_written_out() -> None:
    said = str(
        ProtocolError(Kind.INVALID, "the model 'größe' takes x; got a\nb\x1b[2J\u2028\ud800")
    )
    assert said == r"the model 'größe' takes x; got a\nb\x1b[2J\u2028\ud800"
