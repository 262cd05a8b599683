"""The page: ES modules and a style sheet, as they run; `tl_subvalues.show.html` puts them into one file.

`page.js` exports `render(element, data, options)`; data is the document of `tl_subvalues.saved.document`.
"""
