"""How properties are searched: the same examples in every run, new ones on request.

A search that draws anew each time finds bugs in changes that did not make them. So `make test`
repeats itself, and `pytest --hypothesis-profile=search` looks further.
"""

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)
settings.register_profile("search", derandomize=False, print_blob=True)
settings.load_profile("repeatable")
