"""Style sheet of the inspection page: light and dark, and never colour alone."""

from __future__ import annotations


def _shades() -> str:
    """Classes h0 to h10: from the page's own background to the full accent."""
    return "\n".join(
        f".h{step}{{background:color-mix(in srgb,var(--accent) {step * 10}%,transparent)}}"
        for step in range(11)
    )


STYLE = f"""
:root{{color-scheme:light dark;--page:#fdfdfb;--ink:#1d1d1b;--soft:#575752;--line:#d9d8d2;
--accent:#f2b33d;--anchor:#1f4e9e}}
@media (prefers-color-scheme:dark){{:root{{--page:#161614;--ink:#f1f0ea;--soft:#b1afa6;
--line:#3a3935;--accent:#8a5a00;--anchor:#9cc1ff}}}}
*{{box-sizing:border-box}}
body{{margin:0 auto;max-width:68rem;padding:1.5rem;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}}
h1{{font-size:1.4rem;margin:0 0 1rem;overflow-wrap:anywhere}}
dl{{display:flex;flex-wrap:wrap;gap:.75rem 2rem;margin:0 0 1rem}}
dt{{font-size:.8rem;color:var(--soft)}}
dd{{margin:0;font-weight:600;font-variant-numeric:tabular-nums}}
.legend{{display:flex;flex-wrap:wrap;gap:.4rem 1.5rem;list-style:none;margin:0 0 1rem;padding:0;
font-size:.9rem}}
.ramp span{{display:inline-block;width:1em}}
label{{margin-left:.4rem}}
.prompt{{margin-top:1rem;padding:1rem;border:1px solid var(--line);border-radius:6px;
white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.9;font-family:ui-monospace,monospace;
font-size:.9rem}}
.prompt span{{border-radius:2px}}
.prompt span:hover{{outline:2px solid var(--ink)}}
.prompt i{{font-style:normal;color:var(--soft)}}
.k{{border-bottom:3px solid var(--anchor);font-weight:600}}
.m{{border-bottom:1px dotted var(--soft)}}
.d{{text-decoration:line-through;color:var(--soft)}}
.p{{border-bottom-style:double}}
#only:checked~.prompt .m,#only:checked~.prompt .d{{display:none}}
@media print{{#only,#only+label{{display:none}}}}
{_shades()}
"""
