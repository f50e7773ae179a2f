"""Style sheet of the study's report: light and dark, wide and narrow."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--page:#fdfdfb;--ink:#1d1d1b;--soft:#575752;--line:#d9d8d2;
--raised:#f3f2ec;--good:#3d8fd1;--bad:#e08a3c;--link:#1f4e9e}
@media (prefers-color-scheme:dark){:root{--page:#161614;--ink:#f1f0ea;--soft:#b1afa6;
--line:#3a3935;--raised:#22211e;--good:#2f7fc4;--bad:#b5651d;--link:#9cc1ff}}
*{box-sizing:border-box}
h2{scroll-margin-top:4rem}
body{margin:0 auto;max-width:84rem;padding:1.5rem;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.6rem;margin:0 0 .25rem;line-height:1.2}
h2{font-size:1.25rem;margin:2.5rem 0 .5rem;line-height:1.25}
h3{font-size:1rem;margin:1.5rem 0 .5rem}
a{color:var(--link)}
p,li{max-width:46rem}
.lead{color:var(--soft);margin:0 0 1rem}
.note{border-left:4px solid var(--bad);background:var(--raised);padding:.6rem .9rem;margin:0 0 1rem}
nav ul{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;list-style:none;margin:0 0 1rem;padding:0}
dl.facts{display:flex;flex-wrap:wrap;gap:.75rem 2rem;margin:0 0 1rem}
dl.facts dt{font-size:.8rem;color:var(--soft)}
dl.facts dd{margin:0;font-weight:600;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
summary{cursor:pointer;font-weight:600;padding:.35rem 0}
.guide{columns:2 26rem;column-gap:3rem}
.guide p{margin:.3rem 0 .8rem;break-inside:avoid}
figure{margin:0}
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch}
.plot{display:block;width:100%;min-width:58rem;height:auto}
.plot text{font-family:system-ui,sans-serif!important}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.875rem}
th,td{padding:.3rem .6rem;text-align:left;vertical-align:top}
thead th{border-bottom:2px solid var(--line);vertical-align:bottom;font-size:.8rem}
tbody tr{border-bottom:1px solid var(--line)}
.num{text-align:right;white-space:nowrap}
.plain th{font-weight:400;color:var(--soft);white-space:nowrap}
.plain td{overflow-wrap:anywhere}
.heat{border-collapse:separate;border-spacing:2px}
.heat tbody tr{border:0}
.heat thead th{min-width:4.6rem;max-width:7rem;text-align:center;font-weight:600;border:0}
.heat tbody th,.heat thead th:first-child,#all th.first,#all td.first{position:sticky;left:0;
background:var(--page);z-index:1;text-align:left}
.heat tbody th{font-weight:400;white-space:nowrap;padding-right:1rem}
.heat .own th{font-weight:700}
.heat td{text-align:center;border-radius:3px;cursor:default;
background:color-mix(in srgb,var(--good) calc(var(--v,0)*.72%),var(--page))}
.heat td.neg{background:color-mix(in srgb,var(--bad) calc(var(--v,0)*.72%),var(--page))}
.heat td.best{font-weight:700;box-shadow:inset 0 0 0 2px var(--ink)}
.heat td.void{color:var(--soft);background:var(--raised)}
.heat td:focus{outline:2px solid var(--link)}
.swatch{display:inline-block;width:.75em;height:.75em;border-radius:50%;margin-right:.5em}
.detail{min-height:1.5em;font-size:.875rem;color:var(--soft);margin:.3rem 0 0}
.scale{display:inline-flex;gap:2px;vertical-align:middle}
.scale span{border:1px solid var(--line);width:1.6em;height:.9em;border-radius:2px}
.controls{display:flex;flex-wrap:wrap;gap:.5rem .75rem;align-items:center;margin:.5rem 0}
.ratios{position:sticky;top:0;background:var(--page);padding:.5rem 0;z-index:3;
border-bottom:1px solid var(--line)}
button,select,input{font:inherit;font-size:.875rem;color:var(--ink);background:var(--raised);
border:1px solid var(--line);border-radius:6px;padding:.35rem .7rem;min-height:2.2rem}
button{cursor:pointer}
button[aria-pressed=true]{background:var(--ink);color:var(--page);border-color:var(--ink)}
button:focus-visible,select:focus-visible,input:focus-visible{outline:2px solid var(--link);
outline-offset:1px}
select{max-width:12rem}
#all thead button{background:none;border:0;padding:0;min-height:0;font-weight:600;font-size:.8rem;
text-align:inherit}
#all th[aria-sort=ascending] button::after{content:" ▲"}
#all th[aria-sort=descending] button::after{content:" ▼"}
#all td{white-space:nowrap}
#all td.wide{white-space:normal;min-width:14rem;max-width:26rem;overflow-wrap:anywhere}
.only-script{display:none}
.script .only-script{display:flex}
[hidden]{display:none!important}
@media (max-width:600px){body{padding:1rem;font-size:15px}h1{font-size:1.35rem}
.controls label,.controls select,.controls input{flex:1 1 8rem}
.ratios{flex-wrap:nowrap;overflow-x:auto}.ratios>*{flex:none}
.heat tbody th{padding-right:.4rem;min-width:8.5rem;max-width:9.5rem;white-space:normal}
.plain th{white-space:normal}}
@media print{nav,.controls{display:none!important}}
"""
