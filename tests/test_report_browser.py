"""The report in a real browser: clicks, keys, themes, a phone. Needs Chromium and selenium."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from malt_jax.report import build_report
from malt_jax.report.trees import entry
from malt_jax.storage.jsonl import read_records
from malt_jax.tree.node import Tree
from synthetic_run import HOSTILE, make_run

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="chromium and chromedriver are not installed"
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--force-prefers-reduced-motion",
)
QUESTIONS = 24


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run whose data is paged out beside the page, as a large run's is."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "demo", QUESTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("malt_jax.report.embed.INLINE_BYTES", 0)
        patch.setattr("malt_jax.report.embed.PAGE_BYTES", 100_000)
        build_report(folder)
    return folder


@pytest.fixture(scope="module")
def trees(run) -> dict[str, Tree]:
    shard = run / "rounds" / "000" / "trees" / "00000.jsonl"
    return {tree.question_id: tree for tree in read_records(shard, Tree.from_record)}


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.implicitly_wait(5)
    yield driver
    driver.quit()


@pytest.fixture
def page(chromium, run):
    """The report, freshly opened; afterwards the console must be empty and the title ours."""
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    _size(chromium, 1280, 900)
    _open(chromium, run / "report.html")
    yield chromium
    assert chromium.title == "demo · malt report"
    assert [line["message"] for line in chromium.get_log("browser")] == []


def _open(driver, path: Path, place: str = "") -> None:
    driver.get("about:blank")  # a change of the fragment alone would not load the page again
    driver.get(path.resolve().as_uri() + place)
    driver.find_element("css selector", "#detail h3, #detail .empty")


def _size(driver, width: int, height: int) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def _all(driver, selector: str) -> list:
    return driver.find_elements("css selector", selector)


def _texts(driver, selector: str) -> list[str]:
    """The shown texts, read at one moment: the page may replace elements at any time."""
    read = "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText)"
    return driver.execute_script(read, selector)


def _press(driver, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(driver).send_keys(*keys).perform()


def _click(driver, selector: str, text: str = "") -> None:
    found = next(one for one in _all(driver, selector) if text in one.text)
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
    found.click()


def _question(driver, name: str) -> None:
    """Clicks a question in the list and waits for it: its page of data may have to be loaded."""
    item = driver.find_element("css selector", f'#questions li[data-id="{name}"]')
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", item)
    item.click()
    _wait(driver, lambda: _shown(driver) == name)


def _click_node(driver, name: str) -> None:
    """Clicks a node, found anew if the page draws its tree again in between."""
    from selenium.common.exceptions import StaleElementReferenceException

    def clicked() -> bool:
        try:
            driver.find_element("css selector", f'[data-id="{name}"]').click()
        except StaleElementReferenceException:
            return False
        return True

    _wait(driver, clicked)


def _wait(driver, done, seconds: float = 20) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, seconds, 0.05).until(lambda _: done())


def _shown(driver) -> str:
    return "".join(_texts(driver, "#detail h3"))


def _chosen(driver) -> str:
    """The chosen node of the picture, which is drawn a frame after the text beside it."""
    read = "return document.querySelector('.node.chosen')?.dataset.id"
    found: list[str | None] = [None]

    def drawn() -> bool:
        found[0] = driver.execute_script(read)
        return found[0] is not None

    _wait(driver, drawn)
    return found[0]


def test_every_question_is_listed_and_the_first_is_open(page, trees):
    assert len(_all(page, "#questions li")) == QUESTIONS
    assert _shown(page) == "Q0"
    assert len(_all(page, ".tree .node")) == 39
    assert len(_all(page, ".turns > .turn")) == 3


def test_filters_show_exactly_the_questions_they_name(page, trees):
    def leaves(tree):
        return {leaf.reward for leaf in tree.leaves}

    expected = {
        "all right": [name for name, tree in trees.items() if leaves(tree) == {1}],
        "all wrong": [name for name, tree in trees.items() if leaves(tree) == {0}],
        "mixed": [name for name, tree in trees.items() if leaves(tree) == {0, 1}],
        "refiner saved it": [name for name, tree in trees.items() if entry(tree)["saved"]],
        "refiner broke it": [name for name, tree in trees.items() if entry(tree)["broke"]],
    }
    for name, questions in expected.items():
        _click(page, "#filters button", name)
        assert [e.get_attribute("data-id") for e in _all(page, "#questions li")] == questions
    assert expected["mixed"] and expected["refiner saved it"]


def test_search_finds_by_words_in_any_order(page, trees):
    _press(page, "/")
    _press(page, "boxes maya")
    found = [e.get_attribute("data-id") for e in _all(page, "#questions li")]
    assert found == [name for name, tree in trees.items() if "Maya" in tree.question]
    assert page.find_element("id", "count").text == f"{len(found)} of {QUESTIONS} questions"


def test_enter_opens_the_first_question_found_and_the_arrows_those_after_it(page, trees):
    found = [name for name, tree in trees.items() if "Maya" in tree.question]
    assert len(found) > 1 and found[0] != "Q0"
    _press(page, "/")
    _press(page, "maya", "\ue007")  # enter
    _wait(page, lambda: _shown(page) == found[0])
    leaf = _chosen(page)
    _press(page, "\ue013")  # the tree has the keys now: up leads to the turn before
    assert _chosen(page) == leaf.rpartition("/")[0]
    _press(page, "/")
    _press(page, "\ue015")  # from the search, down leads to the next one found
    _wait(page, lambda: _shown(page) == found[1])
    assert page.execute_script("return document.activeElement.id") == "search"


def test_arrows_go_on_from_the_list_when_it_no_longer_has_the_question(page, trees):
    mixed = [n for n, tree in trees.items() if len({*entry(tree)["leaves"]}) == 2]
    other = next(name for name in trees if name not in mixed)
    _question(page, other)
    _click(page, "#filters button", "mixed")
    assert _shown(page) == other
    _press(page, "\ue015")  # down
    _wait(page, lambda: _shown(page) == mixed[0])


def test_a_clicked_node_shows_its_path_with_the_numbers_of_the_record(page, trees):
    _question(page, "Q9")
    leaf = next(node for node in trees["Q9"].nodes if node.id == "Q9/g2/v1/r1")
    _click_node(page, "Q9/g2/v1/r1")
    assert _texts(page, ".turn header .id") == ["g2", "v1", "r1"]
    nodes = {node.id: node for node in trees["Q9"].nodes}
    said = _texts(page, ".turn > .said")
    assert said == [nodes[n].completion for n in ("Q9/g2", "Q9/g2/v1", "Q9/g2/v1/r1")]
    facts = _texts(page, ".turn dl")[2]
    assert f"{len(leaf.token_ids)} tokens" in facts
    assert f"{sum(leaf.logprobs):.1f}".replace("-", "−") in facts
    assert page.current_url.endswith("#trees000/Q9/g2/v1/r1")


def test_nodes_tell_what_they_taught(page, run):
    folder = run / "rounds" / "000" / "data" / "verifier"
    pair = json.loads((folder / "dpo.jsonl").read_text().splitlines()[0])
    example = json.loads((folder / "sft.jsonl").read_text().splitlines()[0])
    for node, told in (
        (pair["chosen_node_id"], f"Preferred to {pair['rejected_node_id'].split('/')[-1]}"),
        (pair["rejected_node_id"], f"Rejected for {pair['chosen_node_id'].split('/')[-1]}"),
        (example["node_id"], "SFT example of the verifier"),
    ):
        _open(page, run / "report.html", f"#trees000/{node}")
        assert _chosen(page) == node
        assert told in _texts(page, ".turn dl")[1]
    assert len(_all(page, ".tree .pair")) >= 1 and _all(page, ".tree .example")


def test_the_prompt_is_what_the_model_read(page, trees):
    _question(page, "Q10")
    prompts = page.execute_script(
        "return [...document.querySelectorAll('.turn details .said')].map(e => e.textContent)"
    )
    path = ["Q10", *_texts(page, ".turn header .id")]
    nodes = {node.id: node for node in trees["Q10"].nodes}
    assert prompts == [nodes["/".join(path[: i + 2])].prompt for i in range(3)]


def test_the_keyboard_reaches_questions_and_nodes(page):
    page.execute_script("document.getElementById('explorer').scrollIntoView()")
    _press(page, "j", "j", "k")
    _wait(page, lambda: _shown(page) == "Q1")
    _click_node(page, "Q1/g0")
    for key, node in (
        ("\ue014", "Q1/g1"),  # right
        ("\ue015", "Q1/g1/v0"),  # down
        ("\ue012", "Q1/g0/v2"),  # left
        ("\ue015", "Q1/g0/v2/r0"),
        ("\ue013", "Q1/g0/v2"),  # up
    ):
        _press(page, key)
        assert _chosen(page) == node
    _press(page, "?")
    assert page.find_element("id", "help").is_displayed()
    _press(page, "\ue00c")
    assert not page.find_element("id", "help").is_displayed()


def test_model_text_is_shown_as_text(page):
    for index, hostile in enumerate(HOSTILE):
        _question(page, f"Q{index}")
        said = _texts(page, ".turn > .said")[0]
        assert said.splitlines()[0][:6] == hostile[:6] or "\\u" in said
        added = "return document.querySelectorAll('#detail :is(img, script, a, b > *)').length"
        assert page.execute_script(added) == 0
    assert page.execute_script("return document.title") == "demo · malt report"


def test_before_and_after_stand_side_by_side(page, run):
    _click(page, "#sources button", "Before and after")
    _click(page, "#filters button", "fixed")
    assert any(text.startswith("MALT: draft saved") for text in _texts(page, "#filters button"))
    # The last one: the first ones hold hostile text.
    question = _all(page, "#questions li")[-1].get_attribute("data-id")
    _question(page, question)
    assert _texts(page, ".side .who > span") == ["vote of 3: wrong ✗", "vote of 3: right ✓"]
    after = [json.loads(line) for line in (run / "eval" / "malt.jsonl").read_text().splitlines()]
    drawn = [r for r in after if r["question_id"] == question]
    second = page.find_elements("css selector", ".side:last-child .draws button")[1]
    page.execute_script("arguments[0].click()", second)
    said = _texts(page, ".side:last-child .said")
    assert said == [turn["text"] for turn in drawn[1]["turns"]]
    _click(page, ".side:first-child select option", "single agent")
    assert len(_all(page, ".side:first-child .turn")) == 1
    assert len(_all(page, ".side:first-child .draws button")) == 27


def test_the_table_can_be_read_against_either_baseline(page):
    rows = len([row for row in _all(page, "table.results tbody tr") if row.is_displayed()])
    _click(page, ".choice button", "sa@9")
    shown = [row for row in _all(page, "table.results tbody tr") if row.is_displayed()]
    assert len(shown) == rows and {row.get_attribute("class").split()[0] for row in shown} == {
        "baseline"
    }


def test_theme_follows_the_system_and_the_button(page, run):
    def background():
        return page.execute_script("return getComputedStyle(document.body).backgroundColor")

    light = background()
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [dark]})
    night = background()
    assert night != light
    _press(page, "t")
    assert background() == light
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    page.execute_script("localStorage.clear(); delete document.documentElement.dataset.theme")


def test_a_phone_shows_everything_without_scrolling_sideways(page, run):
    _size(page, 390, 844)
    _open(page, run / "report.html")
    width = page.execute_script("return document.documentElement.scrollWidth")
    assert width <= 390
    links = (
        "return [...document.querySelectorAll('.bar a')].map(e => e.getBoundingClientRect().right)"
    )
    assert len(rights := page.execute_script(links)) == 6 and max(rights) <= 390
    # A name may take several lines but none of it is hidden; the table says that it scrolls.
    cut = (
        "return [...document.querySelectorAll('table.results tbody th')]"
        ".filter(e => e.offsetWidth && e.scrollWidth > e.offsetWidth).length"
    )
    assert page.execute_script(cut) == 0
    assert page.execute_script("return document.querySelector('.scroll').matches('.wider')")
    _click_node(page, "Q0/g2/v2/r2")
    assert _chosen(page) == "Q0/g2/v2/r2"


def test_a_missing_page_of_data_is_named(chromium, run, tmp_path):
    shutil.copy(run / "report.html", tmp_path / "report.html")
    _open(chromium, tmp_path / "report.html")
    assert "report_data/trees000-0000.js could not be loaded" in _texts(chromium, "#detail")[0]
    chromium.get_log("browser")


def test_a_self_contained_page_opens_without_its_neighbours(chromium, tmp_path):
    run = make_run(tmp_path / "demo", 4)
    alone = shutil.move(build_report(run), tmp_path / "alone.html")
    _open(chromium, Path(alone))
    assert _shown(chromium) == "Q0" and len(_all(chromium, ".tree .node")) == 39
    assert chromium.get_log("browser") == []


def test_a_held_out_question_is_found_in_its_trees_before_and_after(page):
    _click(page, "#sources button", "Held-out trees, untrained")
    _wait(page, lambda: _shown(page) == "E0")
    assert "held out" in _texts(page, ".turn dl")[0]
    _click(page, ".nav .step button", "same question: held-out trees, trained")
    _wait(page, lambda: "heldout-after/E0" in page.current_url)
    _click(page, ".nav .step button", "same question: before and after")
    _wait(page, lambda: "eval/E0" in page.current_url)
    assert len(_all(page, ".side")) == 2


def test_the_keyboard_goes_through_the_list_and_enter_goes_on_to_the_tree(page):
    page.execute_script("document.getElementById('questions').focus()")
    _press(page, "\ue015", "\ue015", "\ue013")  # down, down, up
    _wait(page, lambda: _shown(page) == "Q1")
    assert page.execute_script("return document.activeElement.id") == "questions"
    leaf = _chosen(page)
    _press(page, "\ue007", "\ue013")  # enter, up
    assert _chosen(page) == leaf.rpartition("/")[0]


def test_the_tree_is_one_stop_of_the_tab_key_and_says_what_its_nodes_are(page, trees):
    _question(page, "Q9")
    # In one script: a tree that is drawn anew in between would leave a node that is gone.
    found = page.execute_script(
        "const all = [...document.querySelectorAll('.tree .node')];"
        "const stops = all.filter((e) => e.tabIndex === 0); stops[0].focus(); return stops.length"
    )
    assert found == 1
    _press(page, "\ue012" if _chosen(page) != "Q9/g0/v0/r0" else "\ue014")  # left or right
    focused = page.execute_script("return document.activeElement.dataset.id")
    assert focused == _chosen(page)
    [node] = [node for node in trees["Q9"].nodes if node.id == focused]
    label = page.execute_script("return document.activeElement.getAttribute('aria-label')")
    assert label.startswith(f"{focused}: value {node.value:.2f}")


def test_a_question_chosen_on_a_phone_is_scrolled_into_view(page, run):
    _size(page, 390, 844)
    _open(page, run / "report.html")
    _question(page, "Q5")
    top = page.execute_script(
        "return document.getElementById('detail').getBoundingClientRect().top"
    )
    assert 0 <= top < 844 * 0.6


def test_two_runs_are_read_side_by_side_question_by_question(chromium, run, tmp_path):
    from malt_jax.report.compare import write_comparison
    from test_report_pages import side

    other = make_run(tmp_path / "other", QUESTIONS, seed=1)
    page = tmp_path / "page.html"
    write_comparison(page, (side(run, questions=QUESTIONS), side(other, questions=QUESTIONS)), [])
    _size(chromium, 1280, 900)
    _open(chromium, page)
    assert chromium.title == "demo and other · malt comparison"
    _click(chromium, "#sources button", "A and B")
    question = _all(chromium, "#questions li")[-1].get_attribute("data-id")
    _question(chromium, question)
    chosen = _texts(chromium, ".side select option:checked")
    assert chosen == ["A: MALT", "B: MALT"]
    for folder, place in ((run, "first"), (other, "last")):
        records = map(json.loads, (folder / "eval" / "malt.jsonl").read_text().splitlines())
        drawn = next(record for record in records if record["question_id"] == question)
        said = _texts(chromium, f".side:{place}-child .said")
        assert said == [turn["text"] for turn in drawn["turns"]]
    _click(chromium, "#sources button", "B: Search trees")
    assert len(_all(chromium, ".tree .node")) == 39
    _size(chromium, 390, 844)
    assert chromium.execute_script("return document.documentElement.scrollWidth") <= 390
    assert [line["message"] for line in chromium.get_log("browser")] == []


def test_a_live_page_follows_the_run_and_leaves_the_explorer_to_its_reader(
    chromium, run, tmp_path, monkeypatch
):
    from malt_jax.report import live
    from test_report_pages import served

    stages: dict = {"search/000": {"done": True, "units": []}}
    monkeypatch.setattr(live, "LEAST_PAUSE", 0.2)
    monkeypatch.setattr(live.manifest, "load", lambda run: {"stages": stages})
    folder = tmp_path / "demo"
    shutil.copytree(run / "rounds", folder / "rounds")
    with served(folder) as address:
        _size(chromium, 1280, 900)
        chromium.get(address)
        _wait(chromium, lambda: "done: search/000" in "".join(_texts(chromium, "#live")))
        _question(chromium, "Q9")
        assert not _all_now(chromium, "#training figure")
        stages["train/000/verifier/sft"] = {"done": False, "units": []}
        shutil.copyfile(run / "metrics.jsonl", folder / "metrics.jsonl")
        shutil.copyfile(run / "results.json", folder / "results.json")
        # The page is built again beside whatever else this machine does.
        _wait(chromium, lambda: _all_now(chromium, "#training figure"), seconds=150)
        assert "in work: train/000/verifier/sft" in "".join(_texts(chromium, "#live"))
        assert "loss" in "".join(_texts(chromium, "#live"))
        assert _shown(chromium) == "Q9"  # what is being read stays
        _click(chromium, ".choice button", "sa@9")  # buttons that came later work
        against = "return document.querySelector('table.results').dataset.against"
        assert chromium.execute_script(against) == "baseline"
        _click(chromium, "#again")
        _wait(chromium, lambda: not _all_now(chromium, "#again"))
        # The same place after loading again.
        _wait(chromium, lambda: _shown(chromium) == "Q9", seconds=60)
    _wait(chromium, lambda: "has ended" in "".join(_texts(chromium, "#live")), seconds=60)
    refused = [
        m for line in chromium.get_log("browser") if "Content Security" in (m := line["message"])
    ]
    assert refused == []


def _all_now(driver, selector: str) -> list:
    """The elements that there are now; `_all` waits for the first one."""
    return driver.execute_script("return [...document.querySelectorAll(arguments[0])]", selector)
