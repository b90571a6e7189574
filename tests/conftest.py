"""What all tests share."""

import signal

# A shell that starts a command in the background lets it ignore Ctrl-C, and so would the programs that are tested here.
signal.signal(signal.SIGINT, signal.default_int_handler)
