"""The 13 tasks of RULER (Hsieh et al. 2024), by the definitions in the paper's appendix.

===============  ==============================================  ======  =============
task             key, value, haystack, or setting                 tokens  score
===============  ==============================================  ======  =============
niah_single_1    word, number, repeated noise                     128     all
niah_single_2    word, number, essays                             128     all
niah_single_3    word, UUID, essays                               128     all
niah_multikey_1  as single_2, with 4 keys                         128     all
niah_multikey_2  word, number, haystack of such needles           128     all
niah_multikey_3  UUID, UUID, haystack of such needles             128     all
niah_multivalue  as single_2, with 4 values of the key            128     all
niah_multiquery  as single_2, with 4 keys, all asked              128     all
vt               1 chain of 4 hops, repeated noise                30      all
cwe              10 common words 30 times, others 3 times         120     all
fwe              zeta distribution, alpha 2.0, 3 words asked      50      all
qa_1             SQuAD                                            32      any
qa_2             HotpotQA                                         32      any
===============  ==============================================  ======  =============

"tokens" is the length of a prediction. The score "all" is RULER's string_match_all, "any" its
string_match_part. Sentences, noise and lists of words are this project's own, so figures come close
to those of the published benchmark and are not the same. Other differences: the length is that of
the prompt alone, without the room for the answer; samples have two halves, "tune" and "report";
needles are spread evenly over the depth; the last document or essay sentence may be cut to meet the
length. The modules name what else differs.
"""

from qm_vllm_eval.tasks.ruler import cwe, fwe, niah, qa, vt
from qm_vllm_eval.tasks.ruler.base import FAMILY

__all__ = ["FAMILY", "TASKS"]

TASKS = (*niah.TASKS, *vt.TASKS, *cwe.TASKS, *fwe.TASKS, *qa.TASKS)
