"""The style sheet of the report page."""

from holdfast.plots.theme import DARK, LIGHT, css_variables

STYLE = (
    f":root{{color-scheme:light dark;{css_variables(LIGHT)}}}\n"
    f"@media (prefers-color-scheme:dark){{:root{{{css_variables(DARK)}}}}}\n"
    + """
*{box-sizing:border-box}
body{margin:0;background:var(--hf-page);color:var(--hf-ink);
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;
 font-variant-numeric:tabular-nums;overflow-wrap:break-word}
main{max-width:60rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.9rem;line-height:1.2;margin:.25rem 0 .75rem;letter-spacing:-.01em;text-wrap:balance}
h2{font-size:1.25rem;margin:2.75rem 0 .6rem;padding-top:1rem;border-top:1px solid var(--hf-rule)}
h3{font-size:1rem;margin:1.5rem 0 .3rem}
p{margin:.4rem 0;max-width:46rem}
small,.quiet,figcaption{color:var(--hf-muted);font-size:.9rem}
.kicker{color:var(--hf-muted);font-size:.95rem;margin:0 0 .6rem;max-width:none}
.verdict{border-left:.4rem solid var(--hf-muted);background:var(--hf-panel);padding:1.1rem 1.4rem;border-radius:.4rem}
.verdict.good{border-color:var(--hf-backup)}
.verdict.warn{border-color:var(--hf-corrected)}
.verdict.bad{border-color:var(--hf-fell-back)}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(13rem,1fr));gap:.9rem;margin:1rem 0}
.card{background:var(--hf-panel);border:1px solid var(--hf-rule);border-radius:.5rem;padding:.8rem 1rem}
.card .name{font-weight:600}
.card .value{font-size:1.75rem;line-height:1.25;font-weight:650}
.card .value small{font-size:1rem;font-weight:400}
.card div.quiet{margin-top:.15rem}
.card svg{display:block;width:100%;height:auto;margin:.35rem 0}
.scroll{overflow-x:auto;margin:.5rem 0}
table{border-collapse:collapse;width:100%;font-size:.94rem}
th,td{text-align:left;vertical-align:top;padding:.42rem .9rem .42rem 0;border-bottom:1px solid var(--hf-rule)}
th{font-weight:600;color:var(--hf-muted);font-size:.86rem}
td.number,th.number{text-align:right}
td.number{white-space:nowrap}
td.key{font-weight:600}
table.stack td.key{width:20%}
table.stack td:nth-child(2):nth-last-child(2){width:42%}
.tag{display:inline-block;border-radius:1rem;padding:.02rem .6rem;margin-right:.3rem;font-size:.9rem;font-weight:600;
 border:1.5px solid currentColor}
.proved,.checked{color:var(--hf-backup)}
.sampled{color:var(--hf-analytic)}
.assumed{color:var(--hf-muted)}
.not-proved,.refuted{color:var(--hf-fell-back)}
.bar{display:flex;height:1.5rem;border-radius:.35rem;overflow:hidden;margin:.7rem 0 .5rem;background:var(--hf-rule)}
.legend{display:flex;flex-wrap:wrap;gap:.25rem 1.4rem;padding:0;margin:.3rem 0;list-style:none;font-size:.94rem}
.legend i{display:inline-block;width:.8rem;height:.8rem;border-radius:.2rem;margin-right:.45rem}
figure{margin:1.2rem 0 2rem}
figure svg{display:block;width:100%;height:auto}
figure .narrow{display:none}
figcaption{max-width:46rem;margin-top:.4rem}
code{white-space:nowrap}
pre,code{font:.88rem/1.5 ui-monospace,Menlo,Consolas,monospace}
pre{background:var(--hf-panel);border:1px solid var(--hf-rule);border-radius:.4rem;padding:.7rem 1rem;overflow-x:auto}
details{margin:.25rem 0}
summary{cursor:pointer;color:var(--hf-muted);font-size:.88rem}
pre code,details code{white-space:pre-wrap}
details code{display:block;white-space:pre-wrap;overflow-wrap:anywhere;color:var(--hf-muted)}
@media (max-width:40rem){
 main{padding:1rem .9rem 3rem}
 h1{font-size:1.5rem}
 .verdict{padding:.9rem 1rem}
 figure .wide{display:none}
 figure .narrow{display:block}
 table.stack thead{display:none}
 th,td{padding-right:.5rem}
 table.stack td,table.stack td.key{display:block;border:0;padding:.1rem 0;width:auto;text-align:left}
 table.stack td:nth-child(2):nth-last-child(2){width:auto}
 table.stack td.number::before{content:attr(data-label) ": ";color:var(--hf-muted)}
 table.stack tr{display:block;padding:.6rem 0;border-bottom:1px solid var(--hf-rule)}
}
@media print{:root{"""
    + css_variables(LIGHT)
    + """}figure,.card,tr{break-inside:avoid}}
"""
)
