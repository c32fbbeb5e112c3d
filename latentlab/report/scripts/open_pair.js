// Show the pair of columns of a clicked cell in the first plot.
const [cell] = source.selected.indices;
if (cell != null) {
  x.value = source.data.first[cell];
  y.value = source.data.second[cell];
  document.getElementById("explore").scrollIntoView();
}
