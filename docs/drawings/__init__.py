"""The pictures of the pages, one function each: ``shapes``, ``second`` and ``higher`` draw them in one ``style``.

``python docs/draw.py`` writes them to ``docs/pictures``.
"""
