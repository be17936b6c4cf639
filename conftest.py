"""What holds for all tests: how properties are searched, and that Ctrl-C is heard.

A search that draws anew each time finds bugs in changes that did not make them. So `make test`
repeats the same examples, and `pytest --hypothesis-profile=search` looks further.
"""

import signal

from hypothesis import settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So does a shell without job control begin what runs in its background (POSIX, 2.11), and
    # children inherit it: the tests of Ctrl-C would wait for a signal that nobody hears.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("repeatable", derandomize=True)
settings.register_profile("search", derandomize=False, print_blob=True)
settings.load_profile("repeatable")
