"""Running code written by a model, in two processes that share nothing but messages.

`solution` executes the submitted code and answers calls; `judge` executes the benchmark's tests and
calls the solution through a proxy. What the solution returns reaches the judge as plain data
(`wire`), so nothing that the submitted code does to its own process (exits, patched builtins,
overridden `__eq__`, frames, memory) can make a test pass: it can only return right values. Both
processes first confine themselves (`limits`).

Some things that tests in one process could do are therefore impossible: passing a function of the
tests' own (Python's own types and functions can be passed), looking into an object of the solution
(attributes, methods, `==`, truth), taking part of an endless iterator. A `None` brings the
arguments back as the call left them; after any other value the tests keep theirs, so that no
solution can change what it is compared with.

The folder is imported as a package of its own by `code`, and imports the standard library only.
"""
