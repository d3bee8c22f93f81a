-- The customers and products that the reader may see, each once and in order: at most `most` of each.
SELECT
    arraySlice(arraySort(groupUniqArray(customer)), 1, {most:UInt32}) AS customers,
    arraySlice(arraySort(groupUniqArray(product)), 1, {most:UInt32}) AS products
FROM visible_elements(everyone = {everyone:Bool}, customers = {customers:Array(String)});
