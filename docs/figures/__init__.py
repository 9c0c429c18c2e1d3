"""The guide's figures and numbers, from the shipped models: `python -m docs.figures`, or `make figures`.

`reading` runs the models, `measures` and `features` are plain arithmetic, `cells` looks for cells that mean
something, `forgetting` asks how long the past is felt, `drawing` and `tables` turn what was found into
pictures and words. Nothing in the guide's text names a number of a model that these do not write; `hook` puts
them where a page has `{{ name }}`.
"""
