"""How the page looks. Colours are variables, which plots take too."""

from __future__ import annotations

LIGHT = {
    "paper": "#ffffff",
    "card": "#f5f7f9",
    "ink": "#1a1f26",
    "quiet": "#59636f",
    "line": "#d5dbe1",
    "band": "#e6eaee",
    "before": "#6b7480",
    "exact": "#0a68b0",
    "after": "#b84a00",
    "loose": "#8a3d9c",
    "good": "#1b6e3c",
    "bad": "#b3261e",
}
DARK = {
    "paper": "#10141a",
    "card": "#1a2029",
    "ink": "#e7ebf0",
    "quiet": "#a0aab6",
    "line": "#353e4a",
    "band": "#28303b",
    "before": "#98a2ae",
    "exact": "#6db6f2",
    "after": "#f29b53",
    "loose": "#d396e3",
    "good": "#6fcf93",
    "bad": "#ff8a80",
}
"""Blue, orange and purple keep apart for the colour-blind; grey is what was there before."""


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())


STYLE = f"""
:root{{color-scheme:light dark;{_variables(LIGHT)}}}
@media (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}
*{{box-sizing:border-box}}
body{{margin:0 auto;padding:2.5rem 1.25rem 3rem;max-width:60rem;background:var(--paper);color:var(--ink);
font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
-webkit-text-size-adjust:100%;overflow-wrap:break-word}}
h1{{font-size:2.4rem;line-height:1.15;margin:.1rem 0 .5rem;letter-spacing:-.02em}}
h2{{font-size:1.35rem;line-height:1.25;margin:3rem 0 .75rem;letter-spacing:-.01em}}
h3{{font-size:1.05rem;margin:1.75rem 0 .5rem}}
p{{margin:.4rem 0}}
.kicker{{font-weight:600;color:var(--quiet);margin:0}}
.quiet,figcaption,footer{{color:var(--quiet)}}
.answers{{list-style:none;margin:2rem 0 0;padding:0;display:grid;gap:1rem;
grid-template-columns:repeat(auto-fit,minmax(min(100%,17rem),1fr))}}
.answers li{{background:var(--card);border-radius:.75rem;padding:1.1rem 1.25rem;font-size:.95rem}}
.answers h2{{font-size:.95rem;font-weight:600;margin:0;letter-spacing:0}}
.figure{{font-size:2rem;font-weight:700;line-height:1.2;margin:.35rem 0 .6rem;letter-spacing:-.02em}}
.good{{color:var(--good)}}
.bad{{color:var(--bad)}}
ul{{padding-left:1.2rem}}
li{{margin:.3rem 0}}
.scroll{{overflow-x:auto;margin:1rem 0}}
table{{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}}
th,td{{text-align:left;vertical-align:top;padding:.5rem .9rem .5rem 0;border-bottom:1px solid var(--line)}}
th,td{{white-space:nowrap}}
th.long,td.long{{white-space:normal;min-width:11rem}}
thead th{{color:var(--quiet);font-weight:600}}
tbody th{{font-weight:600}}
th:empty{{padding:0;border:0}}
.share{{position:relative;display:inline-block;min-width:7rem;padding:0 .4rem;isolation:isolate}}
.bar{{position:absolute;inset:0 auto 0 0;background:var(--band);z-index:-1;border-radius:.2rem}}
figure{{margin:1.25rem 0}}
figure svg{{display:block;width:100%;height:auto}}
figure svg *{{stroke-linejoin:round;stroke-linecap:butt}}
figcaption{{font-size:.9rem;margin:.5rem 0}}
.narrow{{display:none}}
details{{margin:.5rem 0;font-size:.95rem}}
summary{{cursor:pointer;color:var(--exact)}}
pre{{background:var(--card);border-radius:.5rem;padding:.9rem 1rem;overflow-x:auto;
white-space:pre-wrap;overflow-wrap:anywhere;font-size:.85rem;line-height:1.5}}
footer{{margin-top:3rem;border-top:1px solid var(--line);padding-top:1rem;font-size:.9rem}}
@media (max-width:44rem){{
body{{padding:1.5rem 1rem 2rem}}
h1{{font-size:1.9rem}}
th,td{{padding-right:.7rem}}
th.long,td.long{{min-width:8rem}}
.wide{{display:none}}
.narrow{{display:block}}
}}
@media print{{body{{max-width:none}}section{{break-inside:avoid}}}}
"""
