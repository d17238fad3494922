"""How a model comes into the pods, and why it does not."""

from __future__ import annotations

from semipd_operator.reasons.reason import Reason


class ModelReason(Reason):
    """Of ModelReady."""

    LOADED = (
        "Loaded",
        "True",
        "The weights are loaded.",
    )
    SLOW_KERNELS = (
        "SlowKernels",
        "True",
        "The weights are loaded, but a pod computes with slower kernels than its machine could run.",
        "The message says why, and what helps: mostly an image whose kernels were compiled.",
    )
    PENDING = (
        "Pending",
        "Unknown",
        "No pod has begun yet; Available says why.",
    )
    DOWNLOADING = (
        "Downloading",
        "False",
        "The init container `model` downloads; after a failure, which is shown meanwhile, once the new try has lasted "
        "longer than those that fail (15 s, at most a minute).",
    )
    LOADING = (
        "Loading",
        "False",
        "The engine loads the weights.",
    )


class ModelTrouble(Reason):
    """Why a model does not come into a pod: of ModelReady and Available."""

    DOWNLOAD_FAILED = (
        "DownloadFailed",
        "False",
        "The download failed.",
        "It is tried again by itself; kubectl logs POD -c model has more.",
    )
    AUTH_REQUIRED = (
        "AuthRequired",
        "False",
        "Hugging Face refuses the download: the model is gated, or the token is wrong or has expired.",
        "Accept the model's terms and set spec.model.tokenSecretRef to a token that may read it.",
    )
    NOT_FOUND = (
        "NotFound",
        "False",
        "There is no such model, revision or folder.",
        "Correct spec.model.",
    )
    NO_SPACE = (
        "NoSpace",
        "False",
        "The cache is full.",
        "Use a larger claim or emptyDir.",
    )
    CACHE_NOT_WRITABLE = (
        "CacheNotWritable",
        "False",
        "The model cache takes no files: a ReadOnlyMany claim, or one that belongs to another user.",
        "Use a claim that can be written (ReadWriteOnce, ReadWriteMany) by the pod's user or fsGroup; a model "
        "that is there already is read by pvc://CLAIM/FOLDER.",
    )
    INVALID_URI = (
        "InvalidURI",
        "False",
        "The uri names no model that can be fetched.",
        "Correct spec.model.uri.",
    )
    CHECKSUM_MISMATCH = (
        "ChecksumMismatch",
        "False",
        "A file came damaged; it is fetched again.",
        "If it stays: look for a proxy that changes files.",
    )
    UNREACHABLE = (
        "Unreachable",
        "False",
        "The model hub cannot be reached, or answers none of it now; it is asked again by itself.",
        "Check DNS, the network and its policies. Certificates: give the container `model` the CA "
        "(SSL_CERT_FILE). 429: set spec.model.tokenSecretRef. A mirror: HF_ENDPOINT (docs/operations.md).",
    )
    INCOMPLETE = (
        "Incomplete",
        "False",
        "The folder lacks files of the model; the message names them.",
        "Complete the folder, or correct spec.model.",
    )
    LOAD_FAILED = (
        "LoadFailed",
        "False",
        "The engine cannot load the weights.",
        "Mend what the message names (a file of the model; a flag: args of spec.podTemplate); kubectl logs POD -c "
        "engine has more.",
    )
    INVALID_CHECKPOINT = (
        "InvalidCheckpoint",
        "False",
        "A weight file is damaged, cut short or no safetensors file; the message names it.",
        "Copy or download that file again; a cache: delete the model's folder in it, and it is fetched anew.",
    )
    NOT_READABLE = (
        "NotReadable",
        "False",
        "The pod's user may not read a file or folder of the model; the message names it, with its mode and owner.",
        "chmod -R a+rX the model's folder where it is written, or let the pod run as who may: runAsUser, runAsGroup or "
        "supplementalGroups in spec.podTemplate.spec.securityContext. A chmod is noticed by itself.",
    )
    INVALID_CONFIG = (
        "InvalidConfig",
        "False",
        "config.json, or an option that contradicts it, has a value that no model can have; the message names it.",
        "Correct the field or option that the message names (spec.engine, config.json), or take the model's own file.",
    )
    MISSING_TENSORS = (
        "MissingTensors",
        "False",
        "The weight files lack tensors that config.json asks for.",
        "Complete the folder with all of the model's shards; an adapter (LoRA) alone is no model: merge it first.",
    )
    SHAPE_MISMATCH = (
        "ShapeMismatch",
        "False",
        "A tensor has another shape than config.json says: weights and config.json are not of one model.",
        "Take config.json and the weight files from one revision of one model.",
    )
    UNEXPECTED_TENSOR = (
        "UnexpectedTensor",
        "False",
        "The weight files hold a tensor that this architecture does not have.",
        "Use the original weights with their own config.json: other quantizations and adapters bring such tensors.",
    )
    NOT_FINITE = (
        "NotFinite",
        "False",
        "A weight is NaN or infinite in the dtype that the engine computes in.",
        "Copy or download the weights again; if it stays, use weights of a dtype that holds its numbers (bfloat16).",
    )
    UNSUPPORTED_ARCHITECTURE = (
        "UnsupportedArchitecture",
        "False",
        "This engine does not know the model's architecture.",
        "Set spec.model to a model of an architecture that the message names, or use a newer engine image.",
    )
    UNSUPPORTED_DTYPE = (
        "UnsupportedDtype",
        "False",
        "The weights are stored in a dtype that this engine does not compute.",
        "Use weights in a dtype that the message names; of a quantized model the original.",
    )
    UNSUPPORTED_FEATURE = (
        "UnsupportedFeature",
        "False",
        "config.json asks for a variant of its architecture that this engine does not compute.",
        "Use a model without what the message names, or a newer engine image.",
    )
    UNSUPPORTED_ROPE_SCALING = (
        "UnsupportedRopeScaling",
        "False",
        "config.json scales rotary positions in a way that this engine does not compute.",
        "Use a model with a scaling that the message names, or a newer engine image.",
    )
    UNSUPPORTED_TOKENIZER = (
        "UnsupportedTokenizer",
        "False",
        "A GGUF file has a tokenizer that the import does not know.",
        "Use the model's Hugging Face folder, which has a tokenizer.json.",
    )
    ALREADY_EXISTS = (
        "AlreadyExists",
        "False",
        "The folder that an import should write exists and is not empty.",
        "Name another folder, or remove that one.",
    )
    OUT_OF_MEMORY = (
        "OutOfMemory",
        "False",
        "The weights and the KV cache do not fit.",
        "Do what the message asks for; else raise spec.engine.resources.limits.memory, or lower "
        "spec.engine.kvCacheMemory or maxModelLen.",
    )
    CUDA_UNAVAILABLE = (
        "CUDAUnavailable",
        "False",
        "engine.device is cuda, and CUDA cannot be initialised in the pod.",
        "Compare the node's driver with the image's CUDA: `semipd doctor` on the node.",
    )
