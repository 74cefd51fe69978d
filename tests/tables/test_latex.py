import re
import shutil
import subprocess

import pytest
from support.synthetic import a_row, failure, measurements

from lipbench.tables.latex import escape, latex
from lipbench.tables.sources import Source
from lipbench.tables.table import build

GOLDEN = r"""% \usepackage{booktabs}
\begin{table}[htbp]
\centering
\caption{mnist (mnist, mlp)}
\scriptsize
\setlength{\tabcolsep}{2.5pt}
\makebox[\textwidth]{%
\begin{tabular}{lrrrr}
\toprule
Method & Seeds & Test & $\lambda$ & PGD \\
 &  &  &  & $\ell_\infty$ \\
 &  &  &  & $\varepsilon = 0.1$ \\
\midrule
Standard & 2 & 90.0\,$\pm$\,0.0 & -- & 50.0\,$\pm$\,0.0 \\
CLIP (.95) & 2/3 & \textbf{97.0\,$\pm$\,0.0} & 1$\cdot10^{-12}$ (1) & -- \\
\bottomrule
\end{tabular}}

\begin{minipage}{\textwidth}
\smallskip
\raggedright
Checkpoint: chosen. Mean \ensuremath{\pm} standard deviation over seeds.\par
Accuracies in percent; epsilon and sigma in pixel units.\par
Accuracy under attack is an upper bound on robust accuracy.\par
k/n: k of n seeds have finished; the others enter no mean.\par
Bold: better than the second best, by a 95 \% interval paired over seeds and images.\par
Note: CLIP (.95): 2/3 seeds; without a number: seed 2 (nan).\par
\end{minipage}
\end{table}
"""

NASTY = r"a_b%c&d#e~f\g^h{i}j$k<l>m|n" + '"o'


def text_of(rows, **options):
    return latex(build(Source(name="run", rows=tuple(rows)), **options))


def golden_rows():
    clip = {"method": "clip", "params": '{"target_accuracy": 0.95}'}
    attack = {"metric": "robust_accuracy", "side": "upper", "norm": float("inf")}
    attack |= {"epsilon": 0.1, "estimator": "pgd"}
    rows = [a_row(seed=seed) for seed in (0, 1)]
    rows += [a_row(seed=seed, value=0.5, **attack) for seed in (0, 1)]
    rows += [a_row(seed=seed, value=0.97, **clip) for seed in (0, 1)]
    rows.append(a_row(metric="strength[lambda]", value=1e-12, **clip))
    return [*rows, failure("nan", seed=2, **clip)]


def nasty_rows():
    # Every special character, failed cells, ties, a single seed, tiny numbers, several blocks.
    rows = measurements(benchmark=NASTY, method=NASTY, params='{"x": 1}', strength=1e-12)
    rows += measurements(benchmark=NASTY, method=NASTY, params='{"x": "%_\\\\"}')
    rows += [failure("oom", benchmark=NASTY, method="größe_λ_中", seed=3)]
    rows += measurements(upper=1e9, strength=-0.0)
    return rows


def test_the_golden_table():
    assert text_of(golden_rows()) == GOLDEN


def test_environments_are_balanced_and_rows_have_equal_length():
    text = text_of(nasty_rows(), paper=True)
    assert text.count(r"\begin{table}") == 2
    opened = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened
    for tabular in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        lines = [line for line in tabular[1].splitlines() if line.endswith(r"\\")]
        assert len(lines) >= 3
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(tabular[0]) - 1}


def test_braces_and_dollars_are_balanced():
    text = re.sub(r"\\[{}$%&#_]", "", text_of(nasty_rows()))
    assert text.count("{") == text.count("}")
    assert text.count("$") % 2 == 0


def test_the_source_is_ascii():
    assert text_of(nasty_rows()).isascii()


def test_no_special_character_is_left_unescaped():
    assert escape(NASTY) == (
        r"a\_b\%c\&d\#e\textasciitilde{}f\textbackslash{}g\textasciicircum{}h\{i\}j\$k"
        r"\ensuremath{<}l\ensuremath{>}m\ensuremath{|}n''o"
    )


def test_letters_outside_ascii_stay_readable():
    assert escape("größe λ 中 ± é\n") == (
        r"gr\"{o}[U+00DF]e \ensuremath{\lambda} [U+4E2D] \ensuremath{\pm} \'{e} "
    )


def test_names_that_look_like_the_templates_marks_are_text():
    assert "boom" in text_of([a_row(method="<< boom >> <% boom %>")])


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_it_compiles_in_a_document_with_booktabs_alone(tmp_path):
    document = (
        r"\documentclass{article}\usepackage{booktabs}\begin{document}"
        + text_of(golden_rows() + nasty_rows())
        + r"\end{document}"
    )
    (tmp_path / "table.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
