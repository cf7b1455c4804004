"""The page in a real browser: Debian's Chromium, driven by Selenium."""

import base64
import shutil

import pytest
from fitted import images, write_fitted
from helpers import sample_image
from PIL import Image
from service import encoded, running
from tiny_models import CLASSES, classifier, detector, regressor, segmenter, several

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")

FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
DROP = """
const file = new File([Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0))], "image.jpg", { type: "image/jpeg" });
const transfer = new DataTransfer();
transfer.items.add(file);
document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
"""


@pytest.fixture(scope="module")
def _process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    models = (
        *(make(folder)[0] for make in (classifier, detector, segmenter, several, regressor)),
        write_fitted(folder / "digits.safetensors"),
    )
    with running(*models, "--token", "sesame") as service:
        yield service


@pytest.fixture(scope="module")
def _chromium(tmp_path_factory, _process):  # which starts meanwhile
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('browser')}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_script_timeout(10)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def service(_process):
    return _process.wait()


@pytest.fixture(scope="module")
def browser(_chromium, service):
    """With the page open and its token given."""
    _chromium.get(service.url)
    assert _wait(_chromium, "!document.getElementById('lock').hidden")
    _chromium.find_element("id", "token").send_keys("sesame\n")
    assert _wait(_chromium, "document.getElementById('model').length") == 6
    return _chromium


def _wait(browser, condition):
    """Until a JavaScript expression is true; its value."""
    wait = "const [done] = arguments; const look = () => { const found = (%s); found ? done(found) : setTimeout(look, 5) }; look();"
    return browser.execute_async_script(wait % condition)


def _drop(browser, image):
    browser.execute_script("delete document.body.dataset.elapsed; delete document.body.dataset.explained")
    browser.execute_script(DROP, base64.b64encode(encoded(image, "JPEG")).decode())
    _wait(browser, "document.body.dataset.elapsed")


def _drop_file(browser, content, kind):
    browser.execute_script("delete document.body.dataset.elapsed")
    browser.execute_script(DROP.replace("image/jpeg", kind), base64.b64encode(content).decode())
    _wait(browser, "document.body.dataset.elapsed || document.body.matches('.failed')")


def _slide(browser, percent):
    """Move the slider of the score and let it rest."""
    browser.execute_script("delete document.body.dataset.elapsed")
    script = "const s = document.getElementById('threshold'); s.value = %d; for (const one of ['input', 'change']) s.dispatchEvent(new Event(one))"
    browser.execute_script(script % percent)
    _wait(browser, "document.body.dataset.elapsed")


def _bars(browser):
    return browser.execute_script("return [...document.querySelectorAll('#found li')].map((one) => one.innerText.split('\\n')[0])")


def _answer(service, model, image):
    headers = {"Authorization": "Bearer sesame"}
    return service.client.post(f"/predict?model={model}", content=encoded(image, "JPEG"), headers=headers).json()


def _switch(browser, service, model, image):
    browser.execute_script("delete document.body.dataset.elapsed")
    browser.execute_script(f"const s = document.getElementById('model'); s.value = '{model}'; s.dispatchEvent(new Event('change'))")
    _wait(browser, "document.body.dataset.elapsed")
    return _answer(service, model, image)


def _colours(browser):
    """How many colours the overlay has."""
    pixels = "[...new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)]"
    return browser.execute_script(f"const c = document.getElementById('overlay'); return new Set({pixels}).size")


def test_a_dropped_image_is_answered_on_the_page(browser, service):
    image = sample_image(size=(640, 480))
    _drop(browser, image)
    names = [one["class"] for one in _answer(service, "classify", image)["top"]]
    assert _bars(browser) == names
    assert sorted(names) == CLASSES
    explained = _wait(browser, "document.body.dataset.explained")
    assert explained == names[0]
    assert browser.execute_script("return document.getElementById('overlay').width") == 512

    browser.find_element("css selector", "#found li:last-child button").click()
    _wait(browser, f"document.body.dataset.explained === '{names[-1]}'")
    browser.execute_script("const s = document.getElementById('opacity'); s.value = 25; s.dispatchEvent(new Event('input'))")
    assert browser.execute_script("return document.getElementById('overlay').style.opacity") == "0.25"

    regions = _switch(browser, service, "segment", image)["classes"]
    assert _bars(browser) == [one["class"] for one in regions]
    assert _colours(browser) == len(regions) > 1
    spoken = browser.execute_script("return document.getElementById('spoken').textContent")
    assert spoken.startswith(f"{regions[0]['class']} {100 * regions[0]['share']:.1f}\u00a0%, {regions[1]['class']} ")
    first = browser.find_element("css selector", "#found button")
    first.send_keys("\n")  # by keyboard: that class alone
    assert (_colours(browser), first.get_attribute("aria-pressed")) == (2, "true")
    first.send_keys(" ")
    assert (_colours(browser), first.get_attribute("aria-pressed")) == (len(regions), "false")
    objects = _switch(browser, service, "detect", image)["objects"]
    assert _bars(browser) == [one["class"] for one in objects if one["score"] >= 0.5]
    top = _switch(browser, service, "several", image)["top"]
    assert _bars(browser) == [one["class"] for one in top]
    value = _switch(browser, service, "regress", image)["value"]
    assert float(_bars(browser)[0]) == pytest.approx(value, rel=1e-3)
    errors = [entry["message"] for entry in browser.get_log("browser") if "401" not in entry["message"]]
    assert errors == []


def test_the_page_shows_the_set_and_images_unlike_those_trained_on(browser, service):
    known = "const known = document.getElementById('known'); return [known.textContent, known.className, known.hidden]"
    answers = ((image, _answer(service, "digits&coverage=0.95&unknown=1", image)) for image in images("val"))
    hard, answer = next((image, found) for image, found in answers if len(found["set"]) > 1)
    _switch(browser, service, "digits", sample_image())
    _drop(browser, hard)
    assert browser.execute_script(known) == [f"Novelty {answer['novelty']:.2f}.\n95\u00a0% set: {len(answer['set'])} classes.", "", False]
    dimmed = browser.execute_script("return [...document.querySelectorAll('#found li')].map((item) => item.className === 'out')")
    assert dimmed == [i >= len(answer["set"]) for i in range(5)]
    _drop(browser, sample_image(3))
    text, kind, _ = browser.execute_script(known)
    assert text.startswith("Unlike the training images: novelty 1.00.\n95\u00a0% set: ")
    assert kind == "unknown"
    _switch(browser, service, "classify", sample_image(3))
    assert browser.execute_script(known)[2]


def test_the_score_from_which_on_objects_are_shown_is_chosen(browser, service):
    image = sample_image(size=(640, 480))
    _drop(browser, image)
    scores = [one["score"] for one in _switch(browser, service, "detect", image)["objects"]]
    for percent in (5, 50, 95):
        _slide(browser, percent)
        assert len(_bars(browser)) == sum(score > percent / 100 for score in scores)
    _slide(browser, 50)
    _switch(browser, service, "classify", image)
    assert browser.execute_script("return document.getElementById('score').hidden")


def test_all_classes_are_listed_for_those_who_ask(browser, service):
    image = images("val")[0]
    _drop(browser, image)
    _switch(browser, service, "digits", image)
    assert len(_bars(browser)) == 5
    browser.execute_script("delete document.body.dataset.elapsed; document.getElementById('all').click()")
    _wait(browser, "document.body.dataset.elapsed")
    assert len(set(_bars(browser))) == 10
    assert browser.execute_script("return document.getElementById('all').hidden")


def test_small_images_are_enlarged_large_ones_reduced_and_strange_ones_painted(browser, service):
    shown = (
        "const i = document.getElementById('image'); return [i.naturalWidth, i.clientWidth, document.getElementById('note').textContent]"
    )
    _switch(browser, service, "detect", sample_image())
    _drop(browser, sample_image(size=(40, 30)))
    assert browser.execute_script(shown)[:2] == [40, 320]
    _drop_file(browser, encoded(sample_image(size=(1200, 900)), "TIFF"), "image/tiff")
    natural, _, note = browser.execute_script(shown)
    assert (natural, note) == (1024, "")
    assert browser.execute_script("return document.getElementById('boxes').width > 0")
    _drop_file(browser, encoded(Image.new("RGB", (6000, 4500), (90, 120, 40)), "JPEG"), "image/jpeg")
    natural, _, note = browser.execute_script(shown)
    assert natural == 4243
    assert note == "The image was reduced to 4243 × 3182 pixels before it was sent: the service takes no larger one."


def test_the_page_adds_less_than_200_ms_to_the_model(browser, service):
    extra = []
    for seed in range(4):  # the best of a few: a busy machine delays one or another
        _drop(browser, sample_image(seed, (640, 480)))
        elapsed, model = browser.execute_script("return [document.body.dataset.elapsed, document.body.dataset.model].map(Number)")
        extra.append(elapsed - model)
    print(f"the page added {min(extra):.0f} to {max(extra):.0f} ms")
    assert min(extra) < 200


def test_the_page_fits_a_phone_and_says_what_went_wrong(browser, service):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 375, "height": 700, "deviceScaleFactor": 2, "mobile": True})
    assert browser.execute_script("return document.documentElement.scrollWidth <= 375")
    tops = [
        browser.execute_script(f"return document.getElementById('{one}').getBoundingClientRect().top")
        for one in ("shown", "answer", "drop")
    ]
    assert tops == sorted(tops)  # the answer is directly under the image
    browser.execute_script(DROP, base64.b64encode(b"no image").decode())
    assert "not an image of a known format" in _wait(
        browser, "document.body.matches('.failed') && document.getElementById('status').textContent"
    )


def test_masks_are_read_as_coco_writes_them(browser, service):
    # What the page's own decoder makes of a mask, against the library that encoded it.
    np = pytest.importorskip("numpy")
    from faster_coco_eval import mask

    wanted = np.asarray(sample_image(3, (61, 47)).convert("L")) > 110
    runs = mask.encode(np.asfortranarray(wanted.astype(np.uint8)))["counts"].decode()
    script = """
    const [counts, height, width, done] = arguments;
    import("/draw.js").then(({ runLengths, paint }) => {
      const image = new ImageData(width, height);
      paint(image, runLengths(counts), height, 1, [255, 255, 255]);
      done([...image.data].filter((_, at) => at % 4 === 3).map((alpha) => alpha > 0));
    }, (error) => done(String(error)));
    """
    found = browser.execute_async_script(script, runs, *wanted.shape)
    assert found == wanted.ravel().tolist()
