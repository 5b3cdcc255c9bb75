//! Classes from files: read, checked, and every complaint with its place.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use holdfast_api::{
    bundle::{Bundle, BundleBackend},
    compile::{Class, Environment, Problem, compile},
    load::{Located, Object, load},
};
use holdfast_core::Substrate;

/// Files larger than this are not class files.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// What the files declare.
pub struct Declared {
    objects: Vec<(PathBuf, Located)>,
}

/// How many files and objects were read, and what is wrong with them: `file:line:column: message`.
pub struct Report {
    /// Files.
    pub files: usize,
    /// Objects.
    pub objects: usize,
    /// Complaints.
    pub complaints: Vec<String>,
}

impl Declared {
    /// Reads files, and the YAML files of directories.
    ///
    /// # Errors
    /// When a file cannot be read, or there is none.
    pub fn read(paths: &[PathBuf]) -> anyhow::Result<(Self, Report)> {
        let mut files = Vec::new();
        for path in paths {
            collect(path, &mut files)?;
        }
        if files.is_empty() {
            bail!("there are no .yaml files in {}", show(paths));
        }
        let (mut objects, mut complaints) = (Vec::new(), Vec::new());
        for path in &files {
            let text = read(path)?;
            match load(&text) {
                Ok(found) => objects.extend(found.into_iter().map(|one| (path.clone(), one))),
                Err(errors) => {
                    complaints.extend(errors.iter().map(|e| format!("{}:{e}", path.display())));
                }
            }
        }
        let declared = Declared { objects };
        complaints.extend(declared.duplicates());
        let report = Report { files: files.len(), objects: declared.objects.len(), complaints };
        Ok((declared, report))
    }

    /// Compiles the classes, all of them on one backend if so told; with complaints about those that
    /// are wrong.
    pub fn compile(
        &self,
        namespace: &str,
        all_on: Option<(&str, Substrate)>,
    ) -> (Bundle, Vec<String>) {
        let classes: Vec<Class> = self.classes().map(|(_, _, class)| class.clone()).collect();
        let mut backends = BTreeMap::new();
        // Offline nobody knows which Backends the cluster has; those that are neither built in nor in
        // the files are a Redis.
        for class in &classes {
            backends.entry(class.backend().to_owned()).or_insert(BundleBackend::of(
                match class.backend() {
                    holdfast_api::bundle::LEASE_BACKEND => Substrate::Lease,
                    name => self.substrate_of(name).unwrap_or(Substrate::Redis),
                },
            ));
        }
        if let Some((name, substrate)) = all_on {
            backends.insert(name.into(), BundleBackend::of(substrate));
        }
        let all_on = all_on.map(|(name, _)| name.to_owned());
        let environment = Environment { backends, all_on, ..Environment::default() };
        let (bundle, problems) = compile(namespace, &classes, &environment);
        (bundle, problems.iter().flat_map(|problem| self.complain(problem)).collect())
    }

    /// What a Backend of these files is.
    fn substrate_of(&self, name: &str) -> Option<Substrate> {
        self.objects.iter().find_map(|(_, located)| match &located.object {
            Object::Backend(backend) if backend.metadata.name.as_deref() == Some(name) => {
                Some(backend.spec.redis.mode.substrate())
            }
            Object::Backend(_) | Object::Class(_) => None,
        })
    }

    fn classes(&self) -> impl Iterator<Item = (&Path, &Located, &Class)> {
        self.objects.iter().filter_map(|(path, located)| match &located.object {
            Object::Class(class) => Some((path.as_path(), located, class)),
            Object::Backend(_) => None,
        })
    }

    fn complain(&self, problem: &Problem) -> Vec<String> {
        let found = self
            .classes()
            .find(|(_, _, class)| class.kind() == problem.kind && class.name() == problem.name);
        let Some((path, located, _)) = found else { return Vec::new() };
        let complain = |error: &holdfast_api::validate::FieldError| {
            let (line, column) = located.locate(&error.field);
            format!("{}:{line}:{column}: {error}", path.display())
        };
        problem.errors.iter().map(complain).collect()
    }

    fn duplicates(&self) -> Vec<String> {
        let mut seen = BTreeMap::new();
        let mut complaints = Vec::new();
        for (path, located, class) in self.classes() {
            let (line, column) = located.locate("metadata.name");
            let here = format!("{}:{line}:{column}", path.display());
            let name = (class.namespace(), class.kind(), class.name());
            if let Some(first) = seen.get(&name) {
                let kind = class.kind().name();
                complaints
                    .push(format!("{here}: {kind} \"{}\" is at {first} already", class.name()));
            } else {
                seen.insert(name, here);
            }
        }
        complaints
    }
}

fn show(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    if path == Path::new("-") {
        files.push(path.into());
        return Ok(());
    }
    let about = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if !about.is_dir() {
        files.push(path.into());
        return Ok(());
    }
    let entries = fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut inside: Vec<PathBuf> = Vec::new();
    for entry in entries {
        inside.push(entry.with_context(|| format!("cannot read {}", path.display()))?.path());
    }
    inside.sort();
    let is_yaml = |path: &PathBuf| path.extension().is_some_and(|e| e == "yaml" || e == "yml");
    files.extend(inside.into_iter().filter(|path| is_yaml(path) && path.is_file()));
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<String> {
    if path == Path::new("-") {
        return std::io::read_to_string(std::io::stdin()).context("cannot read standard input");
    }
    let size = fs::metadata(path).map_or(0, |about| about.len());
    if size > MAX_FILE {
        bail!("{} has {size} bytes; a file of classes has at most {MAX_FILE}", path.display());
    }
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
