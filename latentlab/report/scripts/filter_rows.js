// Keep the rows that have every chosen value and contain the searched text.
const text = search.value_input.trim().toLowerCase();
const chosen = Object.entries(selects).filter(([column, select]) => select.value !== "");
const rows = source.get_length() ?? 0;
const kept = [];
for (let i = 0; i < rows; i++) {
  const matches = chosen.every(([column, select]) => source.data[column][i] === select.value);
  const contains = text === "" || searched.some((column) => source.data[column][i].toLowerCase().includes(text));
  kept.push(matches && contains);
}
filter.booleans = kept;
count.text = `${kept.filter(Boolean).length} of ${rows} rows`;
