"""A blind user study: a page that asks people to compare samples, and the scores of their answers.

sources.py   run folders -> pictures of one suite, task, protocol and sampling seed
design.py    which items and methods are compared, on which side, and the attention checks
page.py      one offline page (page.html, page.css, page.js), and the key that goes with it
key.py       the key: which code is which method; never shown to those who answer
answers.py   answer files, read strictly: they come from outside
strengths.py preference rates and Bradley-Terry strengths with intervals
results.py   answer files in, rates and strengths out, as JSON and as Markdown
"""
