"""`python -I jail judge|solution`: the judge and the solution of `malt_jax...graders.jail`."""

import sys

if __name__ == "__main__":
    role = sys.argv[1]
    if role == "judge":
        from judge import main
    else:
        from solution import main
    main()
