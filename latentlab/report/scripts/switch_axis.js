// Show another column on one axis of a plot.
for (const glyph of glyphs) {
  glyph[side] = {field: cb_obj.value};
}
axis.axis_label = labels[cb_obj.value];
