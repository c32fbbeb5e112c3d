// The picture with the id `value`: the page holds each once, in its gallery.
return document.getElementById(value)?.src ?? "";
