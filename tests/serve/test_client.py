import threading
import time

import pytest
from helpers import sample_image
from service import encoded, running
from tiny_models import classifier

import convnext
from convnext.errors import UsageError
from convnext.serve.client import Client, ServiceError


@pytest.mark.slow
def test_a_client_asks_all_there_is_and_waits_for_a_service_that_restarts(tmp_path):
    weights, path = classifier(tmp_path)[0], tmp_path / "photo.png"
    path.write_bytes(encoded(sample_image(size=(80, 60))))
    with running(f"insects={weights}", "--token", "sésame") as service:
        client = Client(service.wait().url, token="sésame\n")
        answer = client.predict(path, top=1)
        assert answer["top"][0]["class"] == convnext.load(weights, device="cpu")(path).top()[0][0]
        assert client.predict(path.read_bytes(), model="insects", top=1) == answer
        assert client.explain(path).startswith(b"\x89PNG")
        with pytest.raises(ServiceError, match="insects can't answer classes: the task 'classify' has no such option"):
            client.predict(path, classes=["ant", "bee"])
        assert client.models()[0]["name"] == "insects"
        assert client.reload("insects")["weights"] == answer["weights"]
        for refused, status in ((lambda: client.predict(path, model="birds"), 404), (lambda: client.predict(b"text"), 415)):
            with pytest.raises(ServiceError) as error:
                refused()
            assert error.value.status == status
        with pytest.raises(ServiceError, match="this service needs a token"):
            Client(service.url).predict(path)
        address, port = service.url, service.address[1]
        service.stop()
    with pytest.raises(ServiceError, match="can't be reached"):
        Client(address, patience=0.3).models()
    found = []
    waiting = threading.Thread(target=lambda: found.append(Client(address, token="sésame").predict(path, top=1)))
    waiting.start()
    time.sleep(0.5)
    with running(f"insects={weights}", "--token", "sésame", "--port", port):
        waiting.join(60)
    assert found == [answer]


def test_what_is_no_address_is_refused():
    with pytest.raises(UsageError, match=r"127.0.0.1:8000 is no address of a service: give one such as http://"):
        Client("127.0.0.1:8000")
    assert convnext.Client is Client
