"""Tables of results: columns, means, intervals, footnotes, LaTeX."""
