"""The page in a real browser, the network cut: what it shows, every way to use it, and text made to do harm."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import zoo
from helpers.browser import Browser, browser, violations
from playwright.sync_api import Page, expect

import tl_subvalues as tlsv
from tl_subvalues.saved import files
from tl_subvalues.saved.packing import labels_of_packed
from tl_subvalues.show.html import module, page

pytestmark = [pytest.mark.slow, pytest.mark.any_release, pytest.mark.bridge]

HOSTILE = [
    "</script><script>window.harmed = 1</script>",
    "<img src=x onerror='window.harmed = 1'>",
    "<!--<script>",
    "\u202e\u2066 desrever \x1b[2J\x00\r\n\t",
    "javascript:window.harmed=1",
    '"\' onclick=window.harmed=1 x="',
    "{{harmed}} ${harmed} ]]>",
    "x" * 3000,
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as made:
        yield made


@pytest.fixture(scope="module")
def trace(tokens: torch.Tensor) -> tlsv.Trace:
    return tlsv.trace(zoo.bridge("llama"), tokens, 5)


@pytest.fixture(scope="module")
def document(trace: tlsv.Trace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """With a second reading of words, so that there is a choice."""
    path = tmp_path_factory.mktemp("document") / "t.zip"
    trace.save(path, top=30)
    made = files.read(path)
    made["words"]["cosine"] = copy.deepcopy(made["words"]["bs_value"])
    for sides in made["words"]["cosine"].values():
        sides["top"]["texts"] = ["along"] * 5
        sides["bottom"]["texts"] = ["against"] * 5
    return made


@pytest.fixture(scope="module")
def url(document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "trace.html"
    path.write_text(page(document), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def shown(chromium: Browser, url: str) -> Iterator[Page]:
    """The page, which may ask for nothing and complain of nothing."""
    with chromium.page(url) as (made, seen):
        yield made
        assert seen.requests == []
        assert seen.errors == []


def pins(shown: Page) -> list[str]:
    return shown.eval_on_selector_all(".panel article", "all => all.map(one => one.dataset.part)")


def labels(shown: Page) -> list[str]:
    return shown.eval_on_selector_all("table.rows tbody tr", "all => all.map(one => one.dataset.part)")


def number(text: str) -> float:
    return float(text.replace("−", "-").replace("+", ""))


def test_the_file_names_no_other_place(url: str, trace: tlsv.Trace, tmp_path: Path) -> None:
    """No address in it but a namespace, one script that its policy knows by hash, nothing inline besides."""
    text = trace.to_html(tmp_path / "t.html")
    assert (tmp_path / "t.html").read_text(encoding="utf-8") == text
    found = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'`<]*", text))
    assert found == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in text
    assert not re.search(r"unsafe|<link|<iframe|<img|\bstyle=|\son\w+=", text.partition('<script type="module">')[0])
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function|fetch\(|import\(", module()
    )


def test_what_was_asked_and_what_came_out(shown: Page, trace: tlsv.Trace) -> None:
    """Tokens, target, probability, the rows of a table as the trace has them."""
    assert shown.inner_text("h1") == "Where does w5 come from?"
    texts = shown.eval_on_selector_all(".tokens .token", "all => all.map(one => one.firstChild.textContent)")
    assert texts == trace.str_tokens
    assert number(shown.inner_text(".says .probability").removesuffix(" %")) == pytest.approx(
        100 * trace.prob, rel=0.01
    )
    table = trace.ffn_neurons(30)
    assert labels(shown) == table["label"].tolist()
    cells = shown.eval_on_selector_all("table.rows tbody tr", "all => all.map(row => row.children[2].textContent)")
    values = [number(cell) for cell in cells]
    assert values == pytest.approx(table["log_prob_increase"].tolist(), rel=0.06, abs=1e-4)
    notes = shown.inner_text("footer")
    assert f"of {table.attrs['certificate']['candidates']}" in notes
    assert "transformer-lens" in notes


def test_sinks_are_marked(chromium: Browser, document: dict[str, Any], tmp_path: Path) -> None:
    """Rows of total effects where attention parks say so, as tables and graphs do; others do not."""
    made = copy.deepcopy(document)
    sinks = made["tables"]["effects"]["columns"]["sink"]["values"]
    sinks[:] = [number == 1 for number in range(len(sinks))]
    (tmp_path / "t.html").write_text(page(made), encoding="utf-8")
    with chromium.page((tmp_path / "t.html").as_uri()) as (shown, _):
        shown.locator("[role=tab]", has_text="total effect").click()
        second = labels_of_packed(made["tables"]["effects"])[1]
        marked = shown.locator("table.rows tbody tr", has=shown.locator("th .help", has_text="sink"))
        expect(marked).to_have_count(1)
        expect(marked.locator("button.part")).to_contain_text(second.partition("@")[0])


def test_the_sum_of_what_switched_a_neuron_on(shown: Page, trace: tlsv.Trace) -> None:
    """Scores of the first pinned neuron, the others and the bias add up to its coefficient."""
    (first,) = pins(shown)
    cells = shown.eval_on_selector_all(".scores td", "all => all.map(one => one.textContent)")
    coefficient = trace.ffn_neurons().set_index("label")["coefficient"][first]
    assert sum(map(number, cells)) == pytest.approx(coefficient, abs=0.05)


def test_hovering_tells_and_leaving_is_quiet(shown: Page) -> None:
    """Of a square, a row, a node, the curve; its words are told too, and the keyboard's focus does the same."""
    tip = shown.locator(".tooltip")
    expect(tip).to_be_hidden()
    for place in (".grid td.cell >> nth=3", "table.rows tbody tr >> nth=2", ".graph .node.neuron >> nth=1"):
        shown.hover(place)
        part = shown.locator(place).get_attribute("data-part")
        expect(tip).to_contain_text(f"{part}: ")
    shown.hover("table.rows tbody tr >> nth=2")
    expect(tip).to_contain_text("writes along")
    shown.hover("svg.curve")
    expect(tip).to_contain_text("log p")
    shown.hover("h1")
    expect(tip).to_be_hidden()
    shown.locator("table.rows button.part >> nth=1").focus()
    expect(tip).to_contain_text(": FFN neuron")
    shown.keyboard.press("Escape")
    expect(tip).to_be_hidden()


def test_clicking_pins_everywhere(shown: Page) -> None:
    """One click marks a part in grid, table, graph and panel by one number; another takes it away."""
    shown.locator(".panel .close").click()
    assert pins(shown) == []
    expect(shown.locator(".panel")).to_contain_text("Click a part anywhere")
    both = shown.evaluate(
        "[...document.querySelectorAll('.graph .node.neuron')].map(one => one.dataset.part)"
        ".find(part => [...document.querySelectorAll('table.rows tr')].some(row => row.dataset.part === part))"
    )
    shown.locator(f"table.rows button[data-part='{both}']").click()
    assert pins(shown) == [both]
    assert shown.locator(f"table.rows tr[data-part='{both}'][data-pin='1']").count() == 1
    assert shown.locator(f".graph [data-part='{both}'][data-pin='1']").count() == 1
    cell = shown.locator(".grid td.cell >> nth=5")
    cell.click()
    expect(cell).to_have_attribute("data-pin", "2")
    expect(cell).to_have_attribute("aria-selected", "true")
    assert len(pins(shown)) == 2
    expect(shown.locator(".compare caption")).to_have_text("side by side")
    shown.locator(f".graph [data-part='{both}']").click()
    expect(cell).to_have_attribute("data-pin", "1")
    shown.locator("svg.curve").click()
    assert len(pins(shown)) == 2
    assert pins(shown)[0].endswith("_out")
    for i in range(10):
        shown.locator("table.rows button.part").nth(i).click()
    assert len(pins(shown)) == 6


def test_the_address_keeps_the_view(shown: Page, chromium: Browser) -> None:
    """Pins, tab, filter, order, threshold, reading and colours, opened again by the address alone."""
    shown.get_by_role("tab", name="heads at a token").click()
    shown.locator("table.rows button.part >> nth=2").click()
    shown.get_by_role("button", name="Δ log p").click()
    shown.get_by_role("button", name="Δ log p").click()
    shown.get_by_label("filter rows").fill("L1")
    shown.get_by_label("smallest size shown").fill("12")
    shown.get_by_label("words by").select_option("bs_value")
    shown.get_by_label("colours").select_option("dark")
    address, found, pinned = shown.url, labels(shown), pins(shown)
    assert found
    assert len(pinned) == 2
    with chromium.page(address) as (again, seen):
        assert labels(again) == found
        assert pins(again) == pinned
        assert again.get_by_role("tab", selected=True).inner_text() == "heads at a token"
        assert again.get_by_label("filter rows").input_value() == "L1"
        assert again.locator("th[aria-sort=ascending]").inner_text().startswith("Δ log p")
        assert again.get_by_label("words by").input_value() == "bs_value"
        assert again.evaluate("getComputedStyle(document.getElementById('trace')).colorScheme") == "dark"
        again.evaluate("location.hash = 'pins=L0N3'")
        expect(again.locator(".panel article")).to_have_attribute("data-part", "L0N3")
        assert seen.errors == []


@pytest.mark.parametrize(
    "hash", ["#pins=%3Cimg%20src=x%3E,L9N9&tab=__proto__&sort=x:y", "#min=NaN&words=constructor", "#%%%"]
)
def test_an_odd_address_is_no_harm(hash: str, chromium: Browser, url: str) -> None:
    """What no view has is passed over, or shown as text."""
    with chromium.page(url + hash) as (shown, seen):
        assert len(labels(shown)) == 30
        assert seen.errors == []
        assert seen.requests == []
        assert shown.locator("img").count() == 0


def test_filter_order_threshold(shown: Page, trace: tlsv.Trace) -> None:
    """By part or word; by any column, both ways; by size; the number of rows is told."""
    table = trace.ffn_neurons(30)
    shown.get_by_label("filter rows").fill("l1 neuron")
    assert labels(shown) == [label for label in table["label"] if label.startswith("L1")]
    assert shown.inner_text(".count") == f"{len(labels(shown))} of 30 rows"
    shown.get_by_label("filter rows").fill("no such word")
    assert labels(shown) == []
    shown.get_by_label("filter rows").fill("along")
    with_along = labels(shown)
    shown.get_by_label("filter rows").fill("against")
    assert sorted([*with_along, *labels(shown)]) == sorted(table["label"])
    assert set(with_along) == set(table.loc[table["coefficient"] >= 0, "label"])
    shown.get_by_label("filter rows").fill("")
    shown.get_by_role("button", name="coefficient").click()
    by_coefficient = table.sort_values("coefficient", ascending=False, kind="stable")["label"].tolist()
    assert labels(shown) == by_coefficient
    shown.get_by_role("button", name="coefficient").click()
    assert labels(shown) == by_coefficient[::-1]
    assert shown.evaluate("document.activeElement.textContent").startswith("coefficient")
    shown.get_by_label("smallest size shown").fill("100")
    assert set(labels(shown)) == {table["label"].iloc[0]}


def test_readings_of_words_are_switched(shown: Page) -> None:
    """Everywhere at once, by the sign of each neuron's coefficient."""
    assert "along" in shown.inner_text(".panel .vocabulary") + shown.inner_text("table.rows tbody tr >> nth=0")
    texts = set(shown.eval_on_selector_all("table.rows .words", "all => all.map(one => one.textContent.split(' ')[0])"))
    assert texts == {"along", "against"}
    shown.get_by_label("words by").select_option("bs_value")
    assert "along" not in shown.inner_text("table.rows")
    assert re.search(r"w\d+", shown.inner_text(".panel .vocabulary"))


def test_by_keyboard_alone(shown: Page) -> None:
    """Tab reaches each view once, arrows move in it, Enter pins, and the focus stays where it was."""

    def focused(attribute: str) -> str:
        return shown.evaluate(f"document.activeElement.getAttribute('{attribute}') ?? ''")

    def tab_to(selector: str) -> None:
        for _ in range(120):
            shown.keyboard.press("Tab")
            if shown.evaluate(f"document.activeElement.matches({selector!r})"):
                return
        raise AssertionError(selector)

    tab_to(".grid td")
    first = focused("aria-label")
    shown.keyboard.press("ArrowDown")
    shown.keyboard.press("ArrowRight")
    assert focused("aria-label") != first
    cell = focused("data-part")
    shown.keyboard.press("Enter")
    assert pins(shown)[0] == cell
    assert focused("data-part") == cell
    tab_to("svg.curve")
    said = focused("aria-valuetext")
    shown.keyboard.press("ArrowLeft")
    assert focused("aria-valuetext") != said
    shown.keyboard.press("Enter")
    assert pins(shown)[0].endswith("_out")
    tab_to("[role=tab]")
    shown.keyboard.press("ArrowRight")
    assert shown.evaluate("document.activeElement.textContent") == "attention neurons"
    assert labels(shown)[0].count("D") == 1
    tab_to("button.part")
    part = focused("data-part")
    shown.keyboard.press("Space")
    assert pins(shown)[0] == part
    assert focused("data-part") == part
    tab_to("[data-node]")
    assert focused("data-node") == "target"
    shown.keyboard.press("ArrowDown")
    node = focused("data-node")
    assert node != "target"
    shown.keyboard.press("Enter")
    assert pins(shown)[0] == node
    tab_to(".panel .close")
    shown.keyboard.press("Enter")
    assert node not in pins(shown)


def test_the_graph(shown: Page, trace: tlsv.Trace) -> None:
    """Every neuron of it is drawn; the slider takes edges away; what flows in is told beside a pinned node."""
    graph = trace.graph()
    assert shown.locator(".graph .node.neuron").count() == (graph.nodes["kind"] == "neuron").sum()
    edges = shown.locator(".graph .edge:not([hidden])")
    many = edges.count()
    shown.get_by_label("smallest share").fill("20")
    assert 0 < edges.count() < many
    shown.get_by_label("smallest share").fill("0")
    assert edges.count() > many
    fed = graph.edges[~graph.edges["source"].isin(["others", "bias"])]["target"]
    node = next(label for label in fed if label != "target").removesuffix(f"@{trace.position}")
    shown.locator(f".graph [data-part='{node}']").focus()
    shown.keyboard.press("Enter")
    assert "fed by, in the graph" in shown.inner_text(".panel article >> nth=0")
    assert "all other neurons" in shown.inner_text(".panel article >> nth=0")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 760, 1400, 2000])
def test_widths_and_colours(width: int, scheme: Any, chromium: Browser, url: str) -> None:
    """Nothing runs out of the page, and axe-core finds nothing serious or critical, in any tab, two parts compared."""
    with chromium.page(url, viewport={"width": width, "height": 900}, color_scheme=scheme) as (shown, seen):
        shown.locator("table.rows button.part >> nth=1").click()
        for tab in shown.get_by_role("tab").all():
            tab.click()
            assert shown.evaluate("document.documentElement.scrollWidth") <= width
            if width in (400, 1400):
                assert violations(shown) == []
        assert seen.errors == []
        light = (
            shown.evaluate("getComputedStyle(document.getElementById('trace')).backgroundColor") == "rgb(255, 255, 255)"
        )
        assert light == (scheme == "light")


@pytest.fixture(scope="module")
def hostile(document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Every text of the document made to do harm, and 10,000 tokens."""
    made = copy.deepcopy(document)
    made["tokens"] = {"ids": [3] * 10_000, "texts": [HOSTILE[i % len(HOSTILE)] for i in range(10_000)]}
    made["target"]["texts"] = [HOSTILE[0], HOSTILE[3]]
    made["target"]["against"] = {"ids": [1], "texts": [HOSTILE[1]]}
    made["model"]["name"] = HOSTILE[0]
    made["versions"] = {HOSTILE[1]: HOSTILE[0]}
    made["notes"] = HOSTILE
    for reading in made["words"].values():
        for i, sides in enumerate(reading.values()):
            sides["top"]["texts"] = [HOSTILE[(i + k) % len(HOSTILE)] for k in range(5)]
    for name in ("head_positions", "attn_neurons", "effects", "head_grid"):
        columns = made["tables"][name]["columns"]
        if "token" in columns:
            columns["token"]["values"] = [HOSTILE[i % len(HOSTILE)] for i in range(len(columns["token"]["values"]))]
    for i, label in enumerate(labels_of_packed(made["tables"]["heads"])):
        made["tables"]["heads"]["columns"]["label"]["values"][i] = HOSTILE[i % len(HOSTILE)] + label
    made["predictions"]["columns"]["token"]["values"] = [HOSTILE[0]] * len(
        made["predictions"]["columns"]["token"]["values"]
    )
    path = tmp_path_factory.mktemp("hostile") / "trace.html"
    path.write_text(page(made), encoding="utf-8")
    return path.as_uri()


@pytest.mark.parametrize("width", [400, 1400])
def test_hostile_text_is_shown_and_does_nothing(width: int, hostile: str, chromium: Browser) -> None:
    """It runs nothing, fetches nothing, moves nothing, and the view works as ever."""
    with chromium.page(hostile, viewport={"width": width, "height": 900}) as (shown, seen):
        expect(shown.locator("h1")).to_contain_text("</script><script>window.harmed␣=␣1</script>")
        for tab in shown.get_by_role("tab").all():
            tab.click()
        shown.get_by_role("tab", name="FFN neurons").click()
        shown.locator("table.rows button.part >> nth=2").click()
        shown.hover("table.rows tbody tr >> nth=1")
        shown.locator("summary").click()
        assert shown.locator(".tokens .token").count() == 120
        shown.get_by_role("button", name="more tokens").click()
        assert shown.locator(".tokens .token").count() == 10_000
        assert shown.evaluate("window.harmed") is None
        assert shown.evaluate("document.scripts.length") == 2
        assert shown.locator("img").count() == 0
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        text = shown.inner_text("body")
        assert not set(text) & set("\u202e\u2066\x1b\x00")
        assert "‹U+202E›" in text
        assert seen.requests == []
        assert seen.errors == []


def test_the_policy_holds(chromium: Browser, url: str) -> None:
    """Even where text did become markup: no script but the page's own runs, and nothing is fetched."""
    with chromium.page(url) as (shown, seen):
        shown.evaluate(
            """() => {
                const script = document.createElement("script");
                script.textContent = "window.harmed = 1";
                document.body.append(script);
                const picture = "<img src='https://example.org/x.png' onerror='window.harmed = 1'>";
                document.body.insertAdjacentHTML("beforeend", picture);
            }"""
        )
        assert shown.evaluate("fetch('https://example.org/').then(() => 'reached', () => 'refused')") == "refused"
        assert shown.evaluate("window.harmed") is None
        assert seen.requests == []
        assert sum("Content Security Policy" in error for error in seen.errors) >= 3


def test_without_scripts_the_summary_is_there(chromium: Browser, url: str, trace: tlsv.Trace) -> None:
    """Prompt, prediction and the top of two tables."""
    with chromium.page(url, java_script_enabled=False) as (shown, _):
        assert shown.locator("caption").all_inner_texts() == ["Heads at a source position", "FFN neurons"]
        assert trace.ffn_neurons(1)["label"].iloc[0] in shown.inner_text("table >> nth=1")


def test_on_paper(shown: Page) -> None:
    """Tables and the pinned part, without what only a screen can use."""
    shown.emulate_media(media="print")
    expect(shown.locator(".panel article")).to_be_visible()
    expect(shown.locator("table.rows")).to_be_visible()
    expect(shown.locator(".controls >> nth=0")).to_be_hidden()


def test_a_target_against_another(chromium: Browser, tokens: torch.Tensor, tmp_path: Path) -> None:
    """Both sides are named, and what is measured is their difference."""
    trace = tlsv.trace(zoo.bridge("llama"), tokens, 5, against=7)
    trace.to_html(tmp_path / "t.html")
    with chromium.page((tmp_path / "t.html").as_uri()) as (shown, seen):
        said = shown.inner_text(".says")
        assert "against w7" in said
        assert labels(shown)[:5] == trace.ffn_neurons(5)["label"].tolist()
        expect(shown.get_by_role("button", name="Δ difference")).to_be_visible()
        assert seen.errors == []


@pytest.mark.real_model
def test_the_real_model(chromium: Browser, tmp_path: Path) -> None:
    """Small enough to send, and what a stranger should find is on the first screen."""
    trace = tlsv.trace(tlsv.load_model(), "The capital of France is", " Paris")
    size = len(trace.to_html(tmp_path / "paris.html").encode())
    assert size < 2_000_000
    with chromium.page((tmp_path / "paris.html").as_uri()) as (shown, seen):
        said = shown.inner_text(".brief")
        for finding in ("L23H4@3 reads ␣France", "␣Quebec", "L24N1005", "␣capitals"):
            assert finding in said
        assert pins(shown) == ["L24N1005"]
        assert seen.errors == []
