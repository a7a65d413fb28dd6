"""Small files, what was read from them, and what was said about them."""

from pathlib import Path

import pytest

from mt2st_fast.data import MISSING, open_data
from mt2st_fast.errors import InputError

REAL_DATA = Path(__file__).parents[4] / "shared" / "data"
needs_real_data = pytest.mark.skipif(not REAL_DATA.is_dir(), reason="../shared/data is absent")

CONLLU = """\
# sent_id = 1
# text = Dogs don't bark
1\tDogs\tdog\tNOUN\tNNS\tNumber=Plur\t4\tnsubj\t_\t_
2-3\tdon't\t_\t_\t_\t_\t_\t_\t_\t_
2\tdo\tdo\tAUX\tVBP\tNumber=Plur|VerbForm=Fin\t4\taux\t_\t_
3\tn't\tnot\tPART\tRB\t_\t4\tadvmod\t_\t_
4\tbark\tbark\tVERB\tVB\tVerbForm=Inf\t0\troot\t_\t_
4.1\tghost\tghost\tVERB\tVB\t_\t_\t_\t_\t_

# sent_id = 2
1\tYes\tyes\tINTJ\t_\t_\t0\troot\t_\t_
"""

TABLE = """\
id,text,label,rating,tags
1,"Good, it's
fine!",pos,4.5,a|b
2,Bad.,neg,,b;c
3,So so,,2,
4,x,neg,1,
"""


def words(splits, part="train"):
    return [splits.vocabulary.words[i] for i in splits.parts[part].tokens]


def labels(splits, task, part="train"):
    column = splits.parts[part].column(task)
    return [None if c == MISSING else column.class_names[c] for c in column.values]


def message_of(spec, **settings):
    """The message of the InputError, which must be one line."""
    with pytest.raises(InputError) as raised:
        open_data(spec, **settings)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def sentences(n):
    return "".join(f"w{i} N{i % 3} B\n\n" for i in range(n))
