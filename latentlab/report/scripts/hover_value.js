// The value of the point `value` (a row) on the axis named by `format`, with its interval where there is one.
const column = {x, y}[format].value;
const number = (name) => {
  const found = source.data[name]?.[value];
  return found == null || Number.isNaN(found) ? null : Number(found.toPrecision(4)).toString();
};
const [middle, low, high] = [column, `${column}_low`, `${column}_high`].map(number);
const interval = low != null && high != null ? ` [${low}, ${high}]` : "";
return `${column}: ${middle ?? "missing"}${interval}`;
