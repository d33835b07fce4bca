"""The Chinese twin of docs/gelu.md: the same numbers, tables and formulas, told in Chinese."""

from __future__ import annotations

import re

import torch

from . import page_numbers as told
from .fitting import Fit

__all__ = ["chinese_page"]


def chinese_page(fits: dict[str, Fit], english: str) -> str:
    """The page as Markdown; its fenced blocks are those of the English page."""
    fences = iter(re.findall(r"^```.*?^```", english, re.S | re.M))
    parts = [
        _opening(),
        _shapes(fits),
        _local(fits),
        _mixed(fits),
        _logistic(fits),
        _better(fits),
        _proof(fits),
        _use(),
    ]
    text = "\n\n".join(parts) + "\n"
    return re.sub(r"^FENCE$", lambda _: next(fences), text, flags=re.M)


def _opening() -> str:
    return f"""# GELU 的常数从哪里来

由 `{told.COMMAND}` 写成；本页的每个数字和每幅图都由这条命令算出。

GELU 用一个标准正态变量小于 x 的概率给 x 加权：

FENCE

论文（[Hendrycks and Gimpel, 2016](https://arxiv.org/abs/1606.08415)）给手边没有 erf 的人提供了两个初等的近似：

FENCE

却没有说 1.702 和 0.044715 是怎么来的。[这篇文章](https://kexue.fm/archives/7309)把它们重新找了出来。
本页复述其思路，核对每一位数字，再以同样的计算量做得更好。

![GELU 和它附近的两条曲线](gelu/function.svg)"""


def _shapes(fits: dict[str, Fit]) -> str:
    ratio = fits["tanh-powers phi"].error / fits["tanh phi"].error
    return f"""## 什么形状可以代替 erf

erf 是奇函数，从 −1 升到 1，与两端的距离约为 $e^{{-x^2/2}}$。对奇多项式取 tanh，多项式有多快，就能多快地接近两端；而若干 tanh 之和、
或 tanh 的多项式，尾部与 tanh 自己一样是 $e^{{-2|x|}}$，太重了。每种形式在 Φ 上最好能做到多少
（所有常数都自由，使 [−8, 8] 上的最大误差尽可能小），结果一目了然：

{told.table(["形式", "s(x)，代替 erf(x/√2)", "常数个数", "Φ 上的最大误差"], told.form_rows(fits))}

三次多项式放在 tanh *里面*，误差比 tanh *的*三次多项式小到 {ratio:.0f} 分之一。下面都用
$\\tanh(ax + bx^3)$，或者它最简单的情形 $2\\sigma(\\lambda x) - 1 = \\tanh(\\lambda x/2)$。"""


def _local(fits: dict[str, Fit]) -> str:
    found = fits["local"]
    return f"""## 只在一点吻合：0.0455

首先想到的是泰勒展开。在 0 附近，

FENCE

令系数相等，得 $a = \\sqrt{{2/\\pi}}$ 和 $b = a^3/3 - a/6$，也就是

FENCE

与 0.044715 接近，但不是它。这个近似在展开点处完美，离得越远就偏得越多：
它在 erf 上的最大误差是 {told.number(found.error)}，在 x = {found.at:.2f} 处。"""


def _mixed(fits: dict[str, Fit]) -> str:
    grid, whole = fits["mixed"], fits["mixed continuous"]
    places = " 和 ".join(f"{x:.3f}" for x, _ in whole.peaks)
    rows = [
        ["在 0, 0.001, … 3.999 上取最大（原文的做法）", told.digits(grid, "b"), f"{grid.ratios['b/a']:.14f}"],
        ["在整个 [−8, 8] 上取最大（30 位精度的 Remez 算法）", told.digits(whole, "b"), f"{whole.ratios['b/a']:.14f}"],
    ]
    return f"""## 处处吻合：0.044715

要处处都好，先得说清什么叫“好”。平方误差的积分需要一个权，否则结果由区间的两端决定；最大误差则不需要。令 $a = \\sqrt{{2/\\pi}}$ 不变，
使 0 处的斜率仍然正确，再选 b，使最坏之处尽可能不坏：

FENCE

![b/a 变动时的最大误差](gelu/criterion.svg)

曲线的最低处是尖角，不是谷底：它的左边由误差的一个峰决定，右边由另一个峰决定，两峰相等之处最好。
只有一个自由常数时，有两个大小相等、符号相反的极值（这里在 x = {places}，都是 {told.number(whole.error)}）；有 k 个常数就有 k + 1 个：
这就是 Chebyshev 的等振荡，拟合也由此知道自己已经完成。

![在 erf 上的误差](gelu/local-and-mixed.svg)

{told.table(["准则", "b", "b/a"], rows)}

两者四舍五入都是 **0.044715**。它们从第十一位起不同，因为步长 0.001 的网格最多会错过峰顶半步；已发表的数字只是许多相近准则之一的结果，
后面的数位无关紧要。"""


def _logistic(fits: dict[str, Fit]) -> str:
    grid, whole, best, paper, matched = (
        fits[name] for name in ("logistic", "logistic continuous", "sigmoid gelu", "sigmoid paper", "slope matched")
    )
    rows = [
        told.error_row(f"0 处的斜率，2√(2/π) = {matched.constants['l']:.4f}", matched),
        told.error_row("Φ 上的最大误差最小，即已发表的 1.702", paper),
        told.error_row(f"GELU 上的最大误差最小，{best.constants['l']:.6f}", best),
    ]
    return f"""## logistic 形式：1.702

同样的准则用于一个常数，$\\min_\\lambda \\max_x |\\Phi(x) - \\sigma(\\lambda x)|$，在原文的网格上得
λ = {told.digits(grid, "l", 11)}，在整个 [−8, 8] 上得 λ = {told.digits(whole, "l", 14)}，Φ 上的误差为 {told.number(whole.error)}。
但网络计算的不是 Φ：
GELU 还要乘上 x，所以 x = 2 处的误差要算作 1 处的两倍：

{told.table(["λ 按什么选", "GELU 上的最大误差", "所在的 x"], rows)}

![x·σ(λx) 在 GELU 上的误差](gelu/logistic.svg)

同一个位置换一个数，误差就少了 {1 - best.error / paper.error:.0%}。（用 1.702 *训练*出来的检查点，例如 OpenAI 的 CLIP，
当然仍应使用 1.702。）"""


def _better(fits: dict[str, Fit]) -> str:
    rows = [
        told.constants_row("已发表", fits["tanh paper"]),
        told.constants_row("泰勒展开", fits["local"]),
        told.constants_row("GELU 上极小化极大，a = √(2/π)", fits["tanh fixed gelu"]),
        told.constants_row("**GELU 上极小化极大**", fits["tanh gelu"]),
        told.constants_row("GELU′ 上极小化极大", fits["tanh slope"]),
        told.constants_row("**加上 x⁵，GELU 上极小化极大**", fits["tanh5 gelu"]),
    ]
    turn, shut = told.turning_point(fits["tanh5 gelu"])
    off = told.number(shut, 1)
    two, three, paper = fits["tanh gelu"], fits["tanh5 gelu"], fits["tanh paper"]
    return f"""## 同样的计算量，更好的常数

直接拟合 GELU 本身，并且让 a 也自由：

{told.table(["tanh(ax + bx³ [+ cx⁵])", "常数", "b/a", "GELU 上的最大误差", "Φ 上", "GELU′ 上"], rows)}

![tanh 各形式在 GELU 上的误差](gelu/better.svg)

同一个公式换两个数，误差就小到 {paper.error / two.error:.2f} 分之一；再多一次乘法（x⁵），小到 {paper.error / three.error:.0f} 分之一。
x⁵ 的系数是负的，所以多项式在 |x| = {turn:.2f} 处折返；jieyue 从那里起保持自变量不变，此时门已全开或全关，相差不到 {off}。
所有 tanh 形式在左边很远处都会失去*相对*精度（x = −5 处差 {told.left_tail(paper):.0f} 倍），不过那里 GELU 自己已小于 10⁻⁵。"""


def _proof(fits: dict[str, Fit]) -> str:
    named = (("tanh，已发表", "tanh paper"), ("tanh，GELU 上极小化极大", "tanh gelu"), ("加上 x⁵", "tanh5 gelu"),
             ("σ(1.702x)", "sigmoid paper"), ("σ(1.772934x)", "sigmoid gelu"))  # fmt: skip
    rows = [told.certified_row(label, fits[name]) for label, name in named]
    return f"""## 证明了什么

在若干点上取最大，只是真正最大值的一个下界。因此每次拟合还带有一个由区间算术得到的上界：把定义域切成小区间，在每个小区间上，
用中点的值和导数的包络把误差夹住，所有舍入都算在内；不够紧的小区间再对半切开。在 [−8, 8] 上：

{told.table(["形式", "所见的最大误差", "所在的 x", "保证的上界"], rows)}

这个上界说的是实数意义下的公式。舍入误差另算：torch 的*精确* GELU 在 float32 下误差可达 {told.number(told.rounding(torch.float32), 1)}，
在 bfloat16 下可达 {told.number(told.rounding(torch.bfloat16), 1)}，这时各 tanh 形式已无法与它区分。"""


def _use() -> str:
    return f"""## 怎样使用

FENCE

| 命令 | 作用 |
| --- | --- |
| `jieyue fit gelu` | 拟合，打印表格，画图，把常数写成 Python 和 C |
| `jieyue verify activation MODEL` | 在加载的模型里逐个替换：看 logits、损失、每一层，以及它是用哪一种训练的 |
| `jieyue bench activation` | 各种形式在这台机器上的秒数和字节数，与 torch 自带的相比 |
| `{told.COMMAND}` | 写出本页 |

一个检查点该用哪一种，取决于它是用哪一种训练的，与精度无关：Google 最早的 BERT 用 erf；
后来的 BERT、英文 ALBERT、GPT-2 和 Gemma 用 tanh 形式；
OpenAI 的 CLIP 用 σ(1.702x)。配置里写着 `gelu` 的 ALBERT，跑的其实是错的那一种
（[transformers #2395](https://github.com/huggingface/transformers/issues/2395)）；jieyue 见到时会提醒。"""
