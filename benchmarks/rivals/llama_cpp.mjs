// llama.cpp through node-llama-cpp: `node llama_cpp.mjs NODE_FOLDER FILE.gguf THREADS CONTEXT [lookup]`, where NODE_FOLDER
// has the node_modules that npm filled; with `lookup` it guesses what followed in the prompt, as its predictor does by
// default. It answers as protocol.py says.
import path from "node:path";
import readline from "node:readline";
import {pathToFileURL} from "node:url";

const [folder, file, threads, contextSize, way] = process.argv.slice(2);
const say = (content) => process.stdout.write(JSON.stringify(content) + "\n");

async function openModel() {
    const entry = path.join(folder, "node_modules/node-llama-cpp/dist/index.js");
    const {getLlama, InputLookupTokenPredictor} = await import(pathToFileURL(path.resolve(entry)).href);
    const llama = await getLlama({
        gpu: false, build: "never", skipDownload: true, maxThreads: Number(threads),
        logger: (level, message) => process.stderr.write(`${level}: ${message}\n`)
    });
    const model = await llama.loadModel({modelPath: file});
    const context = await model.createContext({contextSize: Number(contextSize), threads: Number(threads)});
    const predictor = way === "lookup" ? new InputLookupTokenPredictor() : undefined;
    const sequence = context.getSequence({tokenPredictor: predictor});
    return [`llama.cpp ${llama.llamaCppRelease.release} (node-llama-cpp)`, sequence, predictor];
}

async function generate(prompt, newTokens, stop) {
    await sequence.clearHistory();
    predictor?.updateInputTokens(prompt);
    const ids = [], started = performance.now();
    let first;
    for await (const id of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
        first ??= performance.now();
        if (ids.push(id) === newTokens || stop.includes(id)) break;
    }
    return {first_s: (first - started) / 1e3, rest_s: (performance.now() - first) / 1e3, ids};
}

let title, sequence, predictor;
try {
    [title, sequence, predictor] = await openModel();
} catch (error) {
    say({error: String(error).split("\n")[0]});
    process.exit(0);
}
say({ready: title});
for await (const line of readline.createInterface({input: process.stdin})) {
    const {prompt, new_tokens: newTokens, stop} = JSON.parse(line);
    say(await generate(prompt, newTokens, stop));
}
process.exit(0);
