"""Train the classifier of `examples/iris` and save it in BentoML's store."""

import bentoml
from sklearn import datasets, svm

iris = datasets.load_iris()
classifier = svm.SVC(gamma="scale").fit(iris.data, iris.target)
bentoml.sklearn.save_model("iris_clf", classifier, signatures={"predict": {"batchable": True, "batch_dim": 0}})
