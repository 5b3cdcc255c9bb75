//! Names that more than one program has to agree on.

/// The API group; also the prefix of labels and annotations.
pub const GROUP: &str = "holdfast.dev";
/// The served version.
pub const VERSION: &str = "v1alpha1";
/// The category of every kind: `kubectl get holdfast`.
pub const CATEGORY: &str = "holdfast";

/// Marks every object that the operator made.
pub const LABEL_MANAGED: &str = "holdfast.dev/managed";
/// The class an object belongs to.
pub const LABEL_CLASS: &str = "holdfast.dev/class";
/// The kind of that class, in lower case.
pub const LABEL_KIND: &str = "holdfast.dev/kind";
/// On a pod template or a namespace: `"true"` asks for a sidecar, `"false"` on a pod declines.
pub const LABEL_INJECT: &str = "holdfast.dev/inject";
/// On a Namespace: how its sidecars watch Leases. Each by name, unless it is [`LEASE_WATCH_SHARED`].
pub const LABEL_LEASE_WATCH: &str = "holdfast.dev/lease-watch";
/// All Leases of the namespace by one watch, which its accounts are then allowed.
pub const LEASE_WATCH_SHARED: &str = "shared";

/// On a class: take this key's lock from whoever has it.
pub const ANNOTATION_FORCE_RELEASE: &str = "holdfast.dev/force-release";
/// On a LeaderElection: this pod is to lead.
pub const ANNOTATION_TRANSFER_TO: &str = "holdfast.dev/transfer-to";
/// On a pod that stands in elections: a whole number; the candidate with the highest is to lead.
pub const ANNOTATION_PRIORITY: &str = "holdfast.dev/priority";
/// On a pod: the LeaderElections that it stands in from its start on, separated by commas.
pub const ANNOTATION_CANDIDATE: &str = "holdfast.dev/candidate";

/// Guards state outside the API server, and fences that must outlive their class.
pub const FINALIZER: &str = "holdfast.dev/state";
/// The field manager of everything the operator applies.
pub const FIELD_MANAGER: &str = "holdfast-operator";
/// The Secret with a namespace's Redis credentials: `<backend>.username`, `<backend>.password`.
pub const REDIS_SECRET: &str = "holdfast-redis";
/// The ConfigMap with the fences that deleted classes left behind.
pub const FLOORS_CONFIG_MAP: &str = "holdfast-fence-floors";

/// On a pod template: `lock/NAME` or `semaphore/NAME`, which its pods hold from before they are
/// scheduled until they have ended. Also the name of their scheduling gate and of their label.
pub const ANNOTATION_HOLD: &str = "holdfast.dev/hold";
/// Beside it: the key, when it is not the class's only one.
pub const ANNOTATION_HOLD_KEY: &str = "holdfast.dev/hold-key";
/// Beside it: how many permits of a semaphore, when it is not one.
pub const ANNOTATION_HOLD_PERMITS: &str = "holdfast.dev/hold-permits";
/// On a pod that was let go: the fence of its hold.
pub const ANNOTATION_HOLD_FENCE: &str = "holdfast.dev/hold-fence";
/// On a pod with a hold or on its way to one: how things stand, for people.
pub const ANNOTATION_HOLD_STATE: &str = "holdfast.dev/hold-state";
/// On such a pod: `KIND.NAME` of the class.
pub const LABEL_HOLD: &str = "holdfast.dev/hold";
/// The scheduling gate.
pub const GATE_HOLD: &str = "holdfast.dev/hold";
