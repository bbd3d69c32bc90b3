"""Train a classifier on the iris data that scikit-learn carries, and save it as `iris_clf`."""

from sklearn import datasets, svm

import adapter

iris = datasets.load_iris()
classifier = svm.SVC(gamma="scale").fit(iris.data, iris.target)
model = adapter.sklearn.save_model("iris_clf", classifier, signatures={"predict": {"batchable": True, "batch_dim": 0}})
print(f"Saved {model.tag}")
