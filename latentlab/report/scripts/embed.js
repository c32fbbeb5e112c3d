// Put every part of the Bokeh document into its element of the page.
const told = JSON.parse(document.getElementById("bokeh-document").textContent);
Bokeh.embed.embed_items(told.documents, told.items);
