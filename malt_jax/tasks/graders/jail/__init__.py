"""Running code written by a model, in two processes that share nothing but messages.

`solution` executes the submitted code and answers calls; `judge` executes the benchmark's tests and
calls the solution through a proxy. What the solution returns reaches the judge as plain data, so
nothing the submitted code does to its own process (exits, patched builtins, overridden `__eq__`,
frames, memory) can make a test pass: it can only return right values. Both processes lock
themselves in first (`limits`).

So the tests can't do everything that tests in one process could: they can't hand over a function of
their own, nor look into an object of the solution (attributes, methods, `==`, truth), nor take part
of an endless iterator. A `None` brings the arguments back as the call left them; after another
value the tests keep theirs, so that no solution can change what it is compared with.

The folder is run as `python -I jail judge` or `... solution`, and
imports the standard library only.
"""
