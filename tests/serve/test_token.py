"""Who may use the service: the token and the address."""

import asyncio

import httpx
import pytest
from service import running
from tiny_models import classifier

import convnext
from convnext.cli import app as command_line
from convnext.errors import UsageError
from convnext.serve.app import create_app
from convnext.serve.limits import Limits
from convnext.serve.token import VARIABLE, clean, given_token, is_open_to_others, is_right


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return classifier(tmp_path_factory.mktemp("token"))[0]


@pytest.mark.parametrize("empty", ["", " ", "\n", "\t \r\n", "\u00a0"])
def test_an_empty_token_opens_nothing(monkeypatch, empty):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(UsageError, match="the token is empty"):
        command_line(["serve", "no/such/model", "--token", empty], standalone_mode=False)
    monkeypatch.setenv(VARIABLE, empty)
    with pytest.raises(UsageError, match="the token is empty"):
        command_line(["serve", "no/such/model"], standalone_mode=False)
    with pytest.raises(UsageError, match="the token is empty"):
        create_app({}, token=empty)


def test_a_given_token_stands_above_the_environments_and_none_is_none():
    assert given_token("a", {VARIABLE: ""}) == "a"
    assert given_token(None, {VARIABLE: "b\n"}) == "b"
    assert given_token(None, {}) is None


def test_what_no_client_can_send_is_refused():
    for token in ("a b", "a\nb", "a\0b", "a\x7fb", "a\u00a0b"):
        with pytest.raises(UsageError, match="white space or control characters"):
            clean(token)
    assert clean("\n sésame-鍵\r\n") == "sésame-鍵"


def test_the_token_is_compared_as_clients_send_it():
    assert is_right("sesame", "sesame")
    for sent in ("", "sesam", "sesame ", "Sesame", "sesamé", "鍵"):
        assert not is_right(sent, "sesame")
    for token in ("sésame", "鍵"):
        assert is_right(token.encode().decode("latin-1"), token)  # curl's bytes, as the server reads them
    assert is_right("sésame", "sésame")  # Latin-1, as Python's requests sends it
    assert is_right("\xff", "\udcff")  # a byte of the command line that is no UTF-8


def test_the_newline_of_a_secret_is_not_a_part_of_it(weights):
    async def ask():
        service = create_app({"one": convnext.load(weights, device="cpu")}, Limits(), token="sésame\n")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(service), base_url="http://x") as client:
            for sent, status in (("sésame", 200), ("sesame", 401), ("", 401)):
                answer = await client.get("/models", headers={"Authorization": b"Bearer " + sent.encode()})
                assert answer.status_code == status
            assert (await client.get("/models")).status_code == 401

    asyncio.run(ask())


def test_addresses_that_others_can_reach():
    for address in ("127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"):
        assert not is_open_to_others(address)
    for address in ("0.0.0.0", "::", "192.168.1.4", "10.0.0.1", "fe80::1%eth0", "::ffff:10.0.0.1", "8.8.8.8"):
        assert is_open_to_others(address)


@pytest.mark.slow
def test_who_listens_for_others_without_a_token_is_warned(weights):
    with running(weights, "--host", "0.0.0.0") as service:
        line = service.process.stderr.readline()
    assert line.startswith("warning: anyone who reaches 0.0.0.0, port ")
    assert "set --token or CONVNEXT_TOKEN" in line


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--host", ""], "--host is empty"),  # the system would take it for all addresses
        (["--host", " "], "--host is empty"),
        (["--timeout", "inf"], "--timeout inf"),
        (["--max-wait-ms", "inf"], "--max-wait-ms inf"),
    ],
)
def test_limits_that_are_none_are_refused(weights, options, reason):
    with pytest.raises(UsageError, match=reason):
        command_line(["serve", str(weights), *options], standalone_mode=False)


def test_a_timeout_that_is_no_number_is_refused():
    with pytest.raises(UsageError, match="--timeout nan"):
        Limits(timeout=float("nan"))
