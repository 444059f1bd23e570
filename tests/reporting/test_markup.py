"""Pieces of HTML: what is escaped, and where lines may break."""

from hasten.reporting.markup import Html, code, element, name, table, text


def test_text_and_attributes_are_escaped_once() -> None:
    assert text("<b> & 'c'") == "&lt;b&gt; &amp; &#x27;c&#x27;"
    assert text(text("<")) == "&lt;"
    made = element("p", "<", Html("<br>"), class_='"x" onclick="y', aria_label="<")
    assert made == '<p class="&quot;x&quot; onclick=&quot;y" aria-label="&lt;">&lt;<br></p>'


def test_a_long_name_may_break_after_its_punctuation() -> None:
    assert name("a_b(c=<d>) + e") == "a_<wbr>b(<wbr>c=&lt;d&gt;) + e"


def test_a_long_run_of_punctuation_is_split_at_its_end() -> None:
    assert name("." * 1_000_000 + " a.b").endswith(". a.<wbr>b")


def test_lines_to_type_stay_lines() -> None:
    assert code("a <\nb") == '<pre tabindex="0"><code>a &lt;\nb</code></pre>'


def test_only_long_cells_break_into_lines() -> None:
    made = table("what", ("head",), [("short", "l" * 30)])
    assert '<th scope="row">short</th><td class="long">' in made
    assert made.startswith('<div class="scroll" tabindex="0" role="region" aria-label="what">')
