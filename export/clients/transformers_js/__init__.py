"""transformers.js, in Node and in browsers: the folder that it loads, and how it is asked."""
