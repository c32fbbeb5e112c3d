// Show the correlations of another generator, guidance scale, method or set of tokenizers.
const shown = correlations[selects.map((select) => select.value).join("-")];
source.data = {...source.data, ...shown};
